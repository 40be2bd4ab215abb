"""Which files a path means: every file once, in order, whatever links there are."""

import glob
import os
from pathlib import Path

import pytest

from das_jax.data.globs import matching
from das_jax.errors import UserError


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the patterns are relative to."""
    monkeypatch.chdir(tmp_path)
    for name in (
        "b/2.txt",
        "b/a/9.txt",
        "b/.hidden/1.txt",
        "c.txt",
        "a/b/.x.txt",
        "a/b/z.md",
        "a[1]/1.txt",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


def names(pattern: str | Path) -> list[str]:
    return list(map(str, matching(str(pattern))))


@pytest.mark.parametrize(
    "pattern",
    ["**/*.txt", "**", "*/*", "*.txt", "b/**", "**/a/**", "?/**/.x*", "b/.*/*", "a[[]1]/*", "[ab]/**/*.txt",
     "b/../c.txt", "**/b/**/z.*"],
)  # fmt: skip
def test_a_pattern_means_what_it_means_to_glob(tree: Path, pattern: str):
    wanted = [path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path)]
    assert names(pattern) == list(map(str, sorted(map(Path, wanted))))
    assert names(tree / pattern) == [str(tree / path) for path in names(pattern)]


def test_a_link_to_a_folder_that_holds_it_adds_nothing(tree: Path):
    before = names("**/*.txt")
    for place in (tree, tree / "a", tree / "b"):
        for number in range(10):  # Walking them as far as the system allows would take for ever.
            (place / f"link{number}").symlink_to(tree, target_is_directory=True)
    (tree / "itself").symlink_to("itself")
    assert names("**/*.txt") == before


def test_a_file_with_several_names_is_one_file(tree: Path):
    os.link(tree / "c.txt", tree / "hard.txt")
    (tree / "soft.txt").symlink_to("b/2.txt")
    (tree / "also").symlink_to("b")
    assert names("**/*.txt") == ["a[1]/1.txt", "also/2.txt", "also/a/9.txt", "c.txt"]
    assert names("also/*.txt") == ["also/2.txt"], "links are followed"
    assert names("**/b/*.txt") == ["b/2.txt"], "whatever else leads there"


def test_copies_are_different_files(tree: Path):
    (tree / "d.txt").write_bytes((tree / "c.txt").read_bytes())
    assert names("*.txt") == ["c.txt", "d.txt"]


@pytest.mark.parametrize(
    ("pattern", "sentence"),
    [
        ("b", r"b is a directory: name the files in it, b/\*"),
        ("b/", r"b/ is a directory: name the files in it, b/\*"),
        ("b/a*", "matches directories only"),
        ("gone.txt", "gone.txt is a link to nowhere.txt, which is not there"),
        ("/dev/null", "is not a regular file"),
        ("*.csv", r"No file matches \*\.csv"),
        ("~nobody-of-that-name/a.txt", "is no path"),
        ("x" * 5000, "x"),
        ("a\0b", "No file matches"),
    ],
)
def test_no_file(tree: Path, pattern: str, sentence: str):
    (tree / "gone.txt").symlink_to("nowhere.txt")
    with pytest.raises(UserError, match=sentence):
        matching(pattern)
