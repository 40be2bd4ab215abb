"""What is written where somebody says never takes the place of what is there."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from das_jax.errors import UserError
from das_jax.outputs import check_free, creating


def is_ours(path: Path) -> bool:
    return path.read_text().startswith("ours")


def thesis(path: Path) -> None:
    path.mkdir()
    (path / "thesis.tex").write_text("years")


TAKEN: dict[str, Callable[[Path], object]] = {
    "directory": thesis,
    "empty": Path.mkdir,
    "file": lambda path: path.write_text("mine"),
    "link": lambda path: path.symlink_to(path.with_name("elsewhere")),
}


def state(place: Path) -> dict[str, str | None]:
    return {
        str(path.relative_to(place)): os.readlink(path)
        if path.is_symlink()
        else path.read_text()
        if path.is_file()
        else None
        for path in sorted(place.rglob("*"))
    }


@pytest.mark.parametrize("make", TAKEN.values(), ids=TAKEN)
@pytest.mark.parametrize("ours", [None, is_ours], ids=["directory wanted", "file wanted"])
def test_what_is_there_is_refused_before_the_work(
    tmp_path: Path, make: Callable[[Path], object], ours: Callable[[Path], bool] | None
) -> None:
    make(tmp_path / "taken")
    before = state(tmp_path)
    for path in (tmp_path / "taken", tmp_path / "x" / ".." / "taken"):
        (tmp_path / "x").mkdir(exist_ok=True)
        with pytest.raises(UserError, match=r"exists already|is a directory"):
            check_free(path, ours)
    (tmp_path / "x").rmdir()
    assert state(tmp_path) == before


@pytest.mark.parametrize("make", TAKEN.values(), ids=TAKEN)
@pytest.mark.parametrize("wanted", ["directory", "file"])
def test_what_comes_meanwhile_stays_and_the_work_is_kept(
    tmp_path: Path, make: Callable[[Path], object], wanted: str
) -> None:
    target = tmp_path / "taken.x"

    def write() -> None:
        with creating(target, None if wanted == "directory" else is_ours) as temporary:
            if wanted == "directory":
                temporary.mkdir()
                (temporary / "weights").write_text("hours")
            else:
                temporary.write_text("hours")
            make(target)
            came.update(state(target.parent))

    came: dict[str, str | None] = {}
    with pytest.raises(UserError, match="made by somebody else meanwhile and is left alone"):
        write()
    after = state(tmp_path)
    assert {
        name: text for name, text in came.items() if not name.startswith(".")
    }.items() <= after.items()
    (kept,) = tmp_path.glob("taken-*.x")
    assert (kept / "weights" if wanted == "directory" else kept).read_text() == "hours"
    assert not list(tmp_path.glob(".*")), "no temporary file is left"


def test_only_what_is_ours_is_replaced(tmp_path: Path) -> None:
    target = tmp_path / "map"
    for text in ("ours 1", "ours 2"):
        with creating(target, is_ours) as temporary:
            temporary.write_text(text)
        assert target.read_text() == text
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(UserError, match="link exists already"):
        check_free(tmp_path / "link", is_ours)


def test_this_directory_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in (Path(), Path(".."), Path("new/.."), tmp_path):
        with pytest.raises(UserError, match="exists already"):
            check_free(path)


def test_a_name_that_leaves_no_room_is_refused_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be written \(File name too long"):
        check_free(tmp_path / ("a" * 250))
