"""scripts/gpu/check, with parts that need no GPU."""

import importlib.util
import json
import os
import sys
import tarfile
import time
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pytest

GPU = Path(__file__).parents[2] / "scripts/gpu"

FAILS = """
from scripts.gpu.measure import part
def main(report, tiny):
    report.add("before", {"tiny": tiny})
    raise ValueError("it broke")
part("fails", main)
"""
HANGS = """
import subprocess, sys, time
from pathlib import Path
from scripts.gpu.measure import part, seconds_left
def main(report, tiny):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    report.add("child", child.pid)
    report.add("left", seconds_left())
    time.sleep(60)
part("hangs", main)
"""
WORKS = """
from scripts.gpu.measure import part, timed
part("works", lambda report, tiny: report.add("step", timed(lambda: 1, wait=lambda _: None, seconds=0.001)))
"""


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    loader = SourceFileLoader("gpu_check", str(GPU / "check"))
    spec = importlib.util.spec_from_loader("gpu_check", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setitem(sys.modules, "gpu_check", module)
    loader.exec_module(module)
    return module


def test_parts_that_fail_or_hang_do_not_stop_the_others(
    check: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, program in {"fails": FAILS, "hangs": HANGS, "works": WORKS}.items():
        (tmp_path / f"{name}.py").write_text(program)
    out = tmp_path / "out"
    monkeypatch.setattr(check, "HERE", tmp_path)
    monkeypatch.setattr(sys, "argv", ["check", str(out), "--tiny", "--minutes=1"])
    part = check.Part
    order = [
        [part("fails", 20), part("hangs", 2)],
        [part("absent", 5), part("works", 20), part("long", 70)],
    ]
    (tmp_path / "long.py").write_text("raise SystemExit(3)")
    assert check.main(order) == 1
    became = json.loads((out / "check.json").read_bytes())
    assert {name: each["result"] for name, each in became.items()} == {
        "fails": "failed: status 1",
        "hangs": "stopped after 2 s",
        "long": "left out: no time",
        "works": "done",
    }
    assert json.loads((out / "fails.json").read_bytes()) == {"before": {"tiny": True}}
    assert "it broke" in (out / "fails.log").read_text()
    hung = json.loads((out / "hangs.json").read_bytes())
    assert 0 < hung["left"] < 2
    _is_gone(hung["child"])
    assert json.loads((out / "works.json").read_bytes())["step"]["repeats"] == 10
    with tarfile.open(out / "results.tar.gz") as archive:
        assert {"check.json", "hangs.json", "fails.log", "works.json"} <= set(archive.getnames())
    assert "works: step: median" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["check", str(out), "--only", "works"])
    assert check.main(order) == 0


def test_all_parts_may_take_their_whole_time(check: ModuleType) -> None:
    """The last group takes what is left, and enough is left for it."""
    *first, last = check.ORDER
    whole = sum(max(part.seconds for part in parts) for parts in first)
    assert whole + max(part.least for part in last) < 9 * 60 - check.GRACE


def _is_gone(process: int) -> None:
    """Waits until a process is no more, or waits only for its parent to ask for its status."""
    until = time.monotonic() + 5
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return
            os.kill(process, 0)
        except (ProcessLookupError, FileNotFoundError):
            return
        time.sleep(0.05)
    raise AssertionError(f"{process} is still there")
