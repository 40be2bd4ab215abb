"""Files and directories are complete or absent."""

import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from das_jax.errors import UserError
from das_jax.files import built_once


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
from das_jax.files import built_once
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
