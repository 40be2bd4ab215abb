"""Files and directories are complete or absent."""

import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from das_jax.errors import UserError
from das_jax.files import (
    built_once,
    check_writable,
    explaining_full_disk,
    replacing,
    sweep,
    write_json,
    write_text,
)


def build(directory: Path, content: str = "whole") -> bool:
    """Whether this call was the one that built it."""
    with built_once(directory) as unfinished:
        if unfinished is None:
            return False
        (unfinished / "file").write_text(content)
    return True


def entries(tmp_path: Path) -> set[str]:
    return {path.name for path in tmp_path.iterdir() if path.suffix != ".lock"}


def test_built_once(tmp_path: Path):
    directory = tmp_path / "parents" / "wanted"
    assert build(directory)
    assert not build(directory, "again")
    assert (directory / "file").read_text() == "whole"


def test_an_error_leaves_nothing(tmp_path: Path):
    def fail() -> None:
        with built_once(tmp_path / "wanted") as unfinished:
            (unfinished / "file").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert entries(tmp_path) == set()
    assert build(tmp_path / "wanted")


def test_nothing_appears_before_the_end(tmp_path: Path):
    with built_once(tmp_path / "wanted") as unfinished:
        (unfinished / "file").write_text("half")
        assert not (tmp_path / "wanted").exists()
    assert entries(tmp_path) == {"wanted"}


def test_what_a_killed_process_left_is_thrown_away(tmp_path: Path):
    script = """
import os, signal, sys
from pathlib import Path
from das_jax.files import (
    built_once,
    check_writable,
    explaining_full_disk,
    replacing,
    sweep,
    write_json,
    write_text,
)
with built_once(Path(sys.argv[1])) as unfinished:
    (unfinished / "stale").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    wanted = tmp_path / "wanted"
    killed = subprocess.run([sys.executable, "-c", script, str(wanted)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not wanted.exists()
    assert build(wanted)
    assert os.listdir(wanted) == ["file"]
    assert entries(tmp_path) == {"wanted"}


def test_two_processes_at_once_build_it_once(tmp_path: Path):
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        built = pool.map(build, [tmp_path / "wanted"] * 3, chunksize=1)
    assert sorted(built) == [False, False, True]
    assert entries(tmp_path) == {"wanted"}


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        RuntimeError("write() failed: No space left on device; writing a.array_record"),
    ],
)
def test_a_full_disk(tmp_path: Path, error: Exception):
    with (
        pytest.raises(UserError, match=f"The disk of {tmp_path} is full"),
        built_once(tmp_path / "wanted"),
    ):
        raise error
    assert entries(tmp_path) == set()


def test_a_place_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").write_text("no directory")
    with (
        pytest.raises(UserError, match=r"cannot be written .*data\.cache_dir"),
        built_once(tmp_path / "file" / "wanted"),
    ):
        pass


def test_files_and_directories_are_replaced(tmp_path: Path) -> None:
    file, directory = tmp_path / "deep" / "file", tmp_path / "directory"
    for content in ("old", "new"):
        write_text(file, content)
        with replacing(directory) as temporary:
            temporary.mkdir()
            (temporary / content).touch()
            assert temporary.parent == tmp_path, "a rename must stay on one disk"
            assert content == "old" or os.listdir(directory) == ["old"]
    assert file.read_text() == "new"
    assert os.listdir(directory) == ["new"]
    assert entries(tmp_path) == {"deep", "directory"}
    write_json(file, {"a": [1]})
    assert file.read_text().endswith("}\n")
    assert os.listdir(file.parent) == ["file"]


def test_an_error_leaves_the_old(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "old")

    def fail() -> None:
        with replacing(tmp_path / "file") as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert (tmp_path / "file").read_text() == "old"
    assert entries(tmp_path) == {"file"}


def test_a_file_never_takes_the_place_of_a_directory(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"work cannot be written \(Is a directory\).* move away"):
        write_text(tmp_path / "work", "text")
    assert entries(tmp_path) == {"work"}
    assert os.listdir(tmp_path / "work") == ["thesis.tex"]


def test_a_directory_never_takes_the_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "base").write_text("x")
    with (
        pytest.raises(UserError, match=r"base cannot be written .*, or move away what is there$"),
        replacing(tmp_path / "base") as temporary,
    ):
        temporary.mkdir()
    assert entries(tmp_path) == {"base"}


def test_what_cannot_be_written_is_said_before_the_work(tmp_path: Path) -> None:
    check_writable(tmp_path / "deep" / "map.safetensors")
    assert entries(tmp_path / "deep") == set()
    with pytest.raises(UserError, match="deep is a directory; name a file in it"):
        check_writable(tmp_path / "deep")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file/map cannot be written"):
        check_writable(tmp_path / "file" / "map")
    with pytest.raises(UserError, match="file/map cannot be written"):
        write_text(tmp_path / "file" / "map", "text")


def test_sweep_takes_what_kills_left_and_nothing_else(tmp_path: Path) -> None:
    script = """
import os, signal, sys
from pathlib import Path
from das_jax.files import replacing
with replacing(Path(sys.argv[1])) as temporary:
    temporary.mkdir()
    (temporary / "half").touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    for name in ("run/huggingface", "run/deep/base"):
        subprocess.run([sys.executable, "-c", script, str(tmp_path / name)], check=False)
    for name in ("mine.tmp", ".hidden", "deep/kept"):
        (tmp_path / "run" / name).touch()
    assert len(list((tmp_path / "run").rglob("half"))) == 2
    sweep(tmp_path / "run")
    left = {str(path.relative_to(tmp_path / "run")) for path in (tmp_path / "run").rglob("*")}
    (half,) = (tmp_path / "run").glob("deep/.base.*/half")
    deep = {str(path.relative_to(tmp_path / "run")) for path in (half, half.parent)}
    assert left == {"mine.tmp", ".hidden", "deep", "deep/kept", *deep}
    sweep(tmp_path / "run" / "deep", "other")
    assert half.exists(), "not one of the names"
    sweep(tmp_path / "run" / "deep", "base")
    assert {path.name for path in (tmp_path / "run" / "deep").iterdir()} == {"kept"}
    sweep(tmp_path / "nowhere")


def test_only_a_full_disk_is_explained(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=r"is full: free some space or buy one\.$"),
        explaining_full_disk(tmp_path, "buy one"),
    ):
        raise ValueError("RESOURCE_EXHAUSTED: x: No space left on device [os_error_code='28']")
    with pytest.raises(ValueError, match="else"), explaining_full_disk(tmp_path, "buy one"):
        raise ValueError("something else")


def test_what_is_not_finite_is_no_json(tmp_path: Path) -> None:
    write_json(tmp_path / "scores.json", {"a": [1.0]})
    for value in (float("nan"), float("inf")):
        with pytest.raises(UserError, match=r"scores\.json is not written: a\.1\.b is not finite"):
            write_json(tmp_path / "scores.json", {"a": [1.0, {"b": value}]})
    assert (tmp_path / "scores.json").read_text() == '{\n  "a": [\n    1.0\n  ]\n}\n'


@pytest.mark.parametrize(
    ("mask", "file", "directory"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700)]
)
def test_what_is_written_has_the_usual_modes(
    tmp_path: Path, mask: int, file: int, directory: int
) -> None:
    """safetensors makes files that only their owner can read."""
    before = os.umask(mask)
    try:
        with replacing(tmp_path / "model") as temporary:
            temporary.mkdir(0o700)
            (temporary / "deep").mkdir(0o700)
            save_file({"x": np.zeros(1)}, temporary / "deep" / "x.safetensors")
        with replacing(tmp_path / "map") as temporary:
            save_file({"x": np.zeros(1)}, temporary)
    finally:
        os.umask(before)
    for path in (tmp_path / "model", tmp_path / "model" / "deep"):
        assert path.stat().st_mode & 0o777 == directory
    for path in (tmp_path / "map", tmp_path / "model" / "deep" / "x.safetensors"):
        assert path.stat().st_mode & 0o777 == file
