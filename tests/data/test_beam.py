"""Apache Beam: the same corpus as one machine prepares, wherever its workers write."""

import sys
from pathlib import Path

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from numpy.testing import assert_array_equal

from das_jax.data.beam import BeamSettings
from das_jax.data.corpus import Corpus, prepare
from das_jax.data.sources import TextSource
from das_jax.errors import UserError

LENGTH, HELDOUT = 16, 0.3
WORDS = [
    "[SEP]",
    "the",
    "quick",
    "brown",
    "fox",
    "learns",
    "one",
    "domain",
    "of",
    "language",
    "after",
]


class Bucket(MemoryFileSystem):
    """What stands in for gs://."""

    protocol = ("gcs", "gs")

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return MemoryFileSystem._strip_protocol(path.removeprefix("gs://"))


def write_files(directory: Path, files: list[list[int]], seed: int = 0) -> TextSource:
    """One file per list, one document per number, of so many words."""
    directory.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for number, documents in enumerate(files):
        lines = [" ".join(rng.choice(WORDS, words)) for words in documents]
        (directory / f"{number:03}.txt").write_text("\n".join(lines))
    return TextSource(kind="text", path=str(directory / "*.txt"))


def assert_same(one: Corpus, other: Corpus) -> None:
    assert one.splits == other.splits
    assert one.key == other.key
    for split in ("train", "heldout"):
        assert_array_equal(
            np.stack(list(getattr(one, split))), np.stack(list(getattr(other, split)))
        )


@pytest.mark.slow
def test_the_same_chunks_in_the_same_order(
    bert_tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("das_jax.data.chunks.SHARD_TOKENS", 5 * LENGTH)
    rng = np.random.default_rng(1)
    # Blank documents and files, exactly a chunk, many chunks, and the everyday ones.
    files = [[0, 14, 0], [0], [14, 14], [500], *rng.integers(1, 20, (6, 15)).tolist()]
    source = write_files(tmp_path / "text", files)
    plain = prepare(source, bert_tokenizer, LENGTH, HELDOUT, tmp_path / "plain")
    shared = tmp_path / "shared"
    reports: list[tuple[int, int]] = []
    beam = prepare(
        source,
        bert_tokenizer,
        LENGTH,
        HELDOUT,
        tmp_path / "beam",
        lambda *done: reports.append(done),
        BeamSettings(directory=str(shared)),
    )
    assert_same(plain, beam)
    assert reports == [(beam.documents, beam.tokens)]
    assert list(shared.iterdir()) == []


@pytest.mark.slow
def test_in_the_cache_directory_nothing_else_is_left(bert_tokenizer, tmp_path: Path):
    source = write_files(tmp_path / "text", [[14] * 9, [5] * 9])
    plain = prepare(source, bert_tokenizer, LENGTH, HELDOUT, tmp_path / "plain")
    beam = prepare(source, bert_tokenizer, LENGTH, HELDOUT, tmp_path / "beam", beam=BeamSettings())
    assert_same(plain, beam)

    def files(found: Corpus) -> set[str]:
        return {path.name for path in found.directory.rglob("*")}

    assert files(beam) == files(plain)


@pytest.mark.slow
def test_text_and_workers_in_a_bucket(bert_tokenizer, tmp_path: Path):
    fsspec.register_implementation("gcs", Bucket, clobber=True)
    local = write_files(tmp_path / "text", [[14] * 9, [5] * 9])
    bucket = Bucket()
    for path in (tmp_path / "text").iterdir():
        bucket.pipe(f"gs://bucket/text/{path.name}", path.read_bytes())
    beam = prepare(
        TextSource(kind="text", path="gs://bucket/text/*.txt"),
        bert_tokenizer,
        LENGTH,
        HELDOUT,
        tmp_path / "beam",
        beam=BeamSettings(directory="gs://bucket/work"),
    )
    assert_same(prepare(local, bert_tokenizer, LENGTH, HELDOUT, tmp_path / "plain"), beam)
    assert not bucket.find("gs://bucket/work")


@pytest.mark.slow
def test_a_damaged_piece_is_named(bert_tokenizer, tmp_path: Path):
    source = write_files(tmp_path / "text", [[14] * 9, [5] * 9])
    (tmp_path / "text" / "001.txt").write_bytes(b"good\n\xff")
    with pytest.raises(UserError, match=r"001\.txt, line 2: byte 0xff"):
        prepare(source, bert_tokenizer, LENGTH, HELDOUT, tmp_path, beam=BeamSettings())
    assert not [path for path in (tmp_path / "corpora").iterdir() if path.is_dir()]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"runner": "NoRunner"},
            r"Apache Beam's NoRunner failed \(.*NoRunner.*\): check data\.beam",
        ),
        (
            {"options": "--direct_num_workers=many"},
            r"does not take data\.beam\.options \(--direct_num_workers=many\)",
        ),
    ],
)
def test_a_runner_that_cannot_be(bert_tokenizer, tmp_path: Path, settings, sentence: str):
    source = write_files(tmp_path / "text", [[14] * 9])
    with pytest.raises(UserError, match=sentence):
        prepare(source, bert_tokenizer, LENGTH, HELDOUT, tmp_path, beam=BeamSettings(**settings))


def test_without_the_library(bert_tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    source = write_files(tmp_path / "text", [[14] * 9])
    with pytest.raises(
        UserError, match=r"data\.beam needs Apache Beam: pip install 'das-jax\[beam\]'"
    ):
        prepare(source, bert_tokenizer, LENGTH, HELDOUT, tmp_path, beam=BeamSettings())
