"""The quick start on this device: killed in its second domain and started again, against never killed.

Once with the device's usual programs and once with deterministic ones, each pair one after the other, so that
the second run finds the programs of the first: a user's second start does, too.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from scripts.gpu.measure import Report, part

CONFIG = "configs/quickstart.yaml"
QUICK_START = ("--training.steps=400", "--training.checkpoint_every=100", "--evaluation.tasks=[]")
TINY = (
    *("--general.steps=4", "--training.steps=12", "--training.checkpoint_every=3"),
    *(
        "--training.batch_size=4",
        "--method.importance.examples=8",
        "--method.importance.batch_size=8",
    ),
    *("--evaluation.examples=8", "--evaluation.tasks=[]"),
)
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
KILLED_IN = "02-reviews"
TIMES = re.compile("per_second|seconds|waiting|mfu|peak")
"""Metrics of the machine, not of the model."""


def main(report: Report, tiny: bool) -> None:
    options = TINY if tiny else QUICK_START
    kinds = {"usual": ""} if tiny else {"usual": "", "deterministic": DETERMINISTIC}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        pairs = [
            threading.Thread(
                target=pair, args=(report, Path(directory) / kind, kind, flags, options)
            )
            for kind, flags in kinds.items()
        ]
        for each in pairs:
            each.start()
        for each in pairs:
            each.join()
    if not all(f"{kind}.resumed" in report.results for kind in kinds):
        raise SystemExit("a run failed")


def pair(report: Report, place: Path, kind: str, flags: str, options: tuple[str, ...]) -> None:
    """Two runs, and what differs between them."""
    out = report.path.parent / "real_run"
    whole, killed = place / "whole", place / "killed"
    out.mkdir(exist_ok=True)
    began = time.time()
    status = start(whole, flags, options, out / f"{kind}-whole.log").wait()
    report.add(f"{kind}.whole", {"status": status, "seconds": time.time() - began})
    if status:
        return
    stages = sorted(whole.glob("0*-*"))
    rows = {
        stage.name: json.loads((stage / "metrics.jsonl").read_text().splitlines()[-1])
        for stage in stages
    }
    kept = ("loss", "tokens_per_second", "seconds_per_step", "waiting", "mfu")
    for name, row in rows.items():
        report.add(f"{kind}.{name}", {key: row[key] for key in kept if key in row})
    shutil.copyfile(whole / "scores.json", out / f"{kind}-scores.json")
    report.add(f"{kind}.importance", importance_of(whole))

    process = start(killed, flags, options, out / f"{kind}-killed.log")
    while process.poll() is None and not saved(killed / KILLED_IN):
        time.sleep(0.01)
    process.kill()
    process.wait()
    finished = (killed / KILLED_IN / "huggingface").exists()
    report.add(
        f"{kind}.killed",
        {"in": KILLED_IN, "checkpoints": saved(killed / KILLED_IN), "late": finished},
    )
    began = time.time()
    status = start(killed, flags, options, out / f"{kind}-resumed.log").wait()
    found = {"status": status, "seconds": time.time() - began}
    report.add(f"{kind}.resumed", found if status else found | differences(whole, killed))


def start(run: Path, flags: str, options: tuple[str, ...], log: Path) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-m",
        "das_jax.cli",
        "pretrain",
        CONFIG,
        f"--output_dir={run}",
        *options,
    ]
    xla = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
    environment = os.environ | {"XLA_FLAGS": xla, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    with log.open("wb") as stream:
        return subprocess.Popen(command, env=environment, stdout=stream, stderr=subprocess.STDOUT)


def saved(stage: Path) -> list[str]:
    """The steps of its finished checkpoints, that before the first step apart."""
    names = (path.name for path in (stage / "checkpoints").glob("*"))
    return sorted(name for name in names if name.isdecimal() and name != "0")


def importance_of(run: Path) -> dict[str, Any]:
    """Of the first domain: how many units there are, and how important they are."""
    from safetensors.numpy import load_file

    found = load_file(next(run.glob("01-*/importance.safetensors")))
    return {
        name: {"units": value.size, "lowest": float(value.min()), "highest": float(value.max())}
        for name, value in found.items()
        if name.startswith("importance.")
    }


def differences(one: Path, other: Path) -> dict[str, Any]:
    """What differs between two runs that should be equal."""
    import numpy as np
    from safetensors.numpy import load_file

    weights = sorted(path.relative_to(one) for path in one.glob("*/huggingface/model.safetensors"))
    largest = 0.0
    for path in weights:
        first, second = load_file(one / path), load_file(other / path)
        largest = max(largest, *(float(np.abs(first[x] - second[x]).max()) for x in first))
    scores = [losses(json.loads((run / "scores.json").read_text())) for run in (one, other)]
    logs = [
        [learned(run / path.parts[0] / "metrics.jsonl") for path in weights] for run in (one, other)
    ]
    return {
        "identical": all(digest(one / path) == digest(other / path) for path in weights),
        "weights_largest_difference": largest,
        "heldout_identical": scores[0] == scores[1],
        "heldout_largest_difference": max(abs(a - b) for a, b in zip(*scores, strict=True)),
        "metrics_identical": logs[0] == logs[1],
    }


def digest(path: Path) -> dict[str, str]:
    """Of every tensor: the header of a safetensors file is in no certain order."""
    from safetensors.numpy import load_file

    return {
        name: hashlib.sha256(value.tobytes()).hexdigest() for name, value in load_file(path).items()
    }


def losses(scores: Any) -> list[float]:
    """All numbers of scores.json, in order."""
    if isinstance(scores, dict):
        return [number for value in scores.values() for number in losses(value)]
    return [float(scores)] if isinstance(scores, int | float) else []


def learned(path: Path) -> list[dict[str, float]]:
    """The lines of metrics without the machine's part."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: value for name, value in row.items() if not TIMES.search(name)} for row in rows]


if __name__ == "__main__":
    part("real_run", main)
