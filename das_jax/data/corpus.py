"""Prepared corpora: text becomes token chunks on disk, once, on this machine or on many."""

import contextlib
import json
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from hashlib import sha256
from io import StringIO
from pathlib import Path
from typing import Any, TypeVar

import tensorflow_datasets as tfds
from etils import epath
from transformers import PreTrainedTokenizerBase

from das_jax.data import manifest, sources
from das_jax.data.beam import download_config, explaining_failure, write_streams
from das_jax.data.chunks import BeamChunkBuilder, ChunkBuilder, Chunks, chunk_count, copy
from das_jax.data.settings import BeamSettings, Recognised, Source
from das_jax.data.tokenization import (
    TRAIN,
    Encoder,
    Progress,
    Shares,
    SpecialTokens,
    Stream,
    encoder,
    write_parts,
)
from das_jax.errors import UserError
from das_jax.files import built_once, write_json

# Part of every key: raise it when the same input would give other chunks.
FORMAT = 1

FACTS = "corpus.json"

AnyPath = TypeVar("AnyPath", Path, epath.Path)


@dataclass(frozen=True)
class Counts:
    """The size of a split."""

    documents: int
    tokens: int
    """Tokens of the text and separators between documents; nothing that opens, closes or pads a chunk."""
    chunks: int
    words: int | None = None
    """Tokens of the text alone; like `unknown`, not counted by earlier versions."""
    unknown: int | None = None
    """Words that the tokenizer does not know."""


@dataclass(frozen=True)
class Corpus:
    """A prepared corpus."""

    directory: Path
    key: str
    """A hash of everything the chunks depend on."""
    length: int
    """Tokens in a chunk."""
    splits: Mapping[str, Counts]

    @cached_property
    def train(self) -> Chunks:
        return Chunks(_builder_directory(self.directory), "train")

    @cached_property
    def heldout(self) -> Chunks:
        return Chunks(_builder_directory(self.directory), "heldout")

    @cached_property
    def validation(self) -> Chunks:
        return Chunks(_builder_directory(self.directory), "validation")

    @property
    def documents(self) -> int:
        """Documents of all splits."""
        return sum(counts.documents for counts in self.splits.values())

    @property
    def tokens(self) -> int:
        """Tokens of all splits."""
        return sum(counts.tokens for counts in self.splits.values())

    @property
    def unknown_share(self) -> float:
        """The share of the words that the tokenizer does not know, where it was counted."""
        words = sum(counts.words or 0 for counts in self.splits.values())
        return sum(counts.unknown or 0 for counts in self.splits.values()) / max(words, 1)


def prepare(
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    heldout: float,
    cache_dir: Path,
    progress: Progress | None = None,
    beam: BeamSettings | None = None,
    log: Callable[[str], object] = lambda _: None,
    special_tokens: Recognised = "markers",
    validation: float = 0.0,
) -> Corpus:
    """Turns a text into token chunks, or finds those of the same text, tokenizer and settings.

    Each chunk is [CLS] ... [SEP]; documents follow each other with a [SEP] between them. Only the
    last chunk of a split is padded, and left out when less than a quarter full.

    A corpus that is found is compared with the sizes and hashes that were written down when it was
    prepared, about as long a work as hashing the text; a damaged one is prepared anew.

    Args:
        source: The text.
        tokenizer: A fast HuggingFace tokenizer.
        length: Tokens in a chunk, special tokens included.
        heldout: The share of the documents kept away from training, chosen by a hash of their text.
        cache_dir: Where corpora are kept.
        progress: Called now and then with the documents and tokens done.
        beam: How Apache Beam spreads the work over many machines; the corpus is the same without it.
        log: Is told when a damaged corpus is prepared anew.
        special_tokens: Which added tokens of the tokenizer are recognised in the text.
        validation: The share of the documents kept away from training to choose settings by; 0 for none.

    Returns:
        The corpus, complete on disk.

    Raises:
        UserError: The source cannot be read, is empty, is too short or has nothing to predict; the
            tokenizer lacks special tokens; the disk is full; or Beam is missing or fails.
    """
    cache_dir = Path(cache_dir).expanduser()
    enc = encoder(tokenizer, special_tokens)
    shares = {"heldout": heldout} | ({"validation": validation} if validation else {})
    parts = [FORMAT, sources.fingerprint(source), enc.fingerprint, length, *shares.values()]
    key = sha256(json.dumps(parts).encode()).hexdigest()[:16]
    label = sources.label(source)
    name = re.sub(r"[^A-Za-z0-9.]+", "-", label).strip("-")[-60:]
    directory = cache_dir / "corpora" / f"{name}-{key}"
    with built_once(directory, partial(_damage, key=key), log) as unfinished:
        if unfinished is not None:
            splits = _build(source, enc, length, shares, cache_dir, unfinished, progress, beam)
            facts = {
                "source": label,
                "key": key,
                "length": length,
                **shares,
                "splits": {split: asdict(counts) for split, counts in splits.items()},
            }
            _write_facts(unfinished, facts)
    return load(directory)


def _write_facts(directory: Path, facts: dict[str, Any]) -> None:
    """Completes a corpus with corpus.json: what it is, and its files."""
    facts |= {"files": manifest.describe(_builder_directory(directory))}
    write_json(directory / FACTS, facts | {"sha256": _digest(facts)})


def _digest(facts: Mapping[str, Any]) -> str:
    return sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _damage(directory: Path, key: str) -> str | None:
    """What is wrong with a prepared corpus."""
    try:
        facts = json.loads((directory / FACTS).read_bytes())
        same = facts["key"] == key
        digest = facts.pop("sha256", None)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return f"{FACTS} cannot be read"
    if digest is None and "files" not in facts and same:
        return _describe_now(directory, facts)
    if not same or digest != _digest(facts):
        return f"{FACTS} has changed"
    return manifest.damage(_builder_directory(directory), facts["files"])


def _describe_now(directory: Path, facts: dict[str, Any]) -> str | None:
    """Reads all of a corpus from before there were manifests, and gives it one if it is whole."""
    try:
        found = load(directory)
        # Corpora of that time have these two splits alone.
        for chunks, counts in (
            (found.train, found.splits["train"]),
            (found.heldout, found.splits["heldout"]),
        ):
            if len(chunks) != counts.chunks:
                return f"{FACTS} counts other chunks than there are"
            for start in range(0, len(chunks), 1024):
                chunks.__getitems__(range(start, min(start + 1024, len(chunks))))
    except Exception as error:  # What damage does to readers is theirs to choose.
        return f"it cannot be read: {error}"
    with contextlib.suppress(UserError):  # Somebody else's cache, to be read alone.
        _write_facts(directory, facts)
    return None


def load(directory: Path) -> Corpus:
    """Opens a prepared corpus.

    Args:
        directory: `Corpus.directory`.
    """
    facts = json.loads((directory / FACTS).read_text())
    splits = {split: Counts(**counts) for split, counts in facts["splits"].items()}
    return Corpus(directory, facts["key"], facts["length"], splits)


def _build(
    source: Source,
    enc: Encoder,
    length: int,
    shares: Shares,
    cache_dir: Path,
    directory: Path,
    progress: Progress | None,
    beam: BeamSettings | None,
) -> dict[str, Counts]:
    with _workplace(directory, beam) as place:
        parts = place / "streams"
        parts.mkdir()
        if beam is None:
            documents = sources.documents(source, cache_dir)
            found = write_parts(documents, enc, shares, parts / "all", progress)
            streams = {split: Stream((part,)) for split, part in found.items()}
        else:
            streams = write_streams(source, enc, shares, cache_dir, parts, beam)
            if progress is not None:
                done = streams.values()
                progress(sum(s.documents for s in done), sum(s.tokens for s in done))
        _check(streams, sources.label(source), length, shares)
        _write_chunks(streams, enc.special, length, place, beam)
        parts.rmtree()
        (place / "downloads").rmtree(missing_ok=True)
    return {
        split: Counts(
            stream.documents,
            stream.tokens,
            chunk_count(stream.tokens, length),
            stream.words,
            stream.unknown,
        )
        for split, stream in streams.items()
    }


@contextmanager
def _workplace(directory: Path, beam: BeamSettings | None) -> Iterator[epath.Path]:
    """Where all workers can write; what is there in the end is in `directory` too."""
    if beam is None or beam.directory is None:
        yield epath.Path(directory)
        return
    place = epath.Path(beam.directory) / f"{directory.name}-{uuid.uuid4().hex}"
    place.mkdir(parents=True)
    try:
        yield place
        prepared = _builder_directory(place)
        for path in prepared.iterdir():
            copy(path, epath.Path(_builder_directory(directory)) / path.name)
    finally:
        place.rmtree()


def _write_chunks(
    streams: Mapping[str, Stream],
    special: SpecialTokens,
    length: int,
    place: epath.Path,
    beam: BeamSettings | None,
) -> None:
    if beam is None:
        builder = ChunkBuilder(streams, special, length, place)
        config = tfds.download.DownloadConfig(try_download_gcs=False)
        failures: AbstractContextManager[None] = nullcontext()
    else:
        builder = BeamChunkBuilder(streams, special, length, place)
        config, failures = download_config(beam), explaining_failure(beam)
    # TFDS draws bars and prints where it downloads from; there is nothing to download.
    tfds.disable_progress_bar()
    with redirect_stdout(StringIO()), failures:
        builder.download_and_prepare(download_config=config)


def _check(streams: Mapping[str, Stream], label: str, length: int, shares: Shares) -> None:
    train = streams[TRAIN]
    documents, tokens, words, unknown, predictable = (
        sum(getattr(stream, what) for stream in streams.values())
        for what in ("documents", "tokens", "words", "unknown", "predictable")
    )
    lower = " or ".join(f"data.{split}, which is {share}," for split, share in shares.items())
    if documents == 0:
        raise UserError(
            f"The corpus {label} is empty: give it at least one document that is not blank."
        )
    if 0 < words == unknown:
        raise UserError(
            f"Every token of the corpus {label} is unknown to the tokenizer: give a model that knows its "
            "language and script."
        )
    if words > 0 and predictable == 0:
        raise UserError(
            f"The corpus {label} has nothing but special tokens and words unknown to the tokenizer, so "
            "that there is nothing to predict: give it other text, or another model."
        )
    if tokens < length - 2:
        raise UserError(
            f"The corpus {label} has {tokens} tokens, fewer than one chunk of {length}: give it more text or "
            "lower data.length."
        )
    if train.tokens < length - 2:
        raise UserError(
            f"The corpus {label} has only {train.tokens} tokens left for training, fewer than one chunk of "
            f"{length}: give it more documents, or lower {lower} or data.length."
        )
    for split, share in shares.items():
        if streams[split].tokens == 0:
            purpose = "" if split == "heldout" else f" for {split}"
            raise UserError(
                f"None of the {documents} documents of the corpus {label} was held out{purpose}: give it "
                f"more documents or raise data.{split}, which is {share}."
            )
    for split, stream in streams.items():
        if stream.predictable == 0:
            raise UserError(
                f"The corpus {label} has nothing to predict in its {split} documents, only special tokens "
                "and words unknown to the tokenizer: give it more documents, or another model."
            )


def _builder_directory(directory: AnyPath) -> AnyPath:
    return directory / ChunkBuilder.name / str(ChunkBuilder.VERSION)
