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

from das_jax.data import manifest, records, sources
from das_jax.data.beam import download_config, explaining_failure, write_streams
from das_jax.data.chat import Chat, chat
from das_jax.data.chunks import BeamChunkBuilder, ChunkBuilder, Chunks, copy
from das_jax.data.enough import check_documents, check_examples
from das_jax.data.layouts import Rows, chunk_count
from das_jax.data.settings import (
    BeamSettings,
    DocumentsName,
    ObjectiveName,
    Recognised,
    RecordSettings,
    Source,
)
from das_jax.data.supervised import write_examples
from das_jax.data.tokenization import (
    Encoder,
    Progress,
    Shares,
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
    cut: int | None = None
    """Of examples, those that were longer than a chunk; like `dropped`, not counted of documents."""
    dropped: int | None = None
    """Of these, the ones of whose responses nothing was left, and that are in no chunk."""


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
    def shortened(self) -> str | None:
        """A sentence on the examples that were longer than a chunk, if there are any."""
        counts = self.splits.values()
        cut, dropped = (
            sum(getattr(each, name) or 0 for each in counts) for name in ("cut", "dropped")
        )
        if not cut:
            return None
        left_out = f"; {dropped} of these, whose prompts fill it, were left out" if dropped else ""
        return (
            f"{cut} of {self.documents + dropped} examples are longer than a chunk of {self.length} tokens "
            f"and were cut{left_out}"
        )

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
    objective: ObjectiveName = "masked",
    documents: DocumentsName = "joined",
) -> Corpus:
    """Turns a text into token chunks, or finds those of the same text, tokenizer and settings.

    Documents follow each other as `das_jax.data.layouts` says, for masked models or for decoders. The last
    chunk of a split is padded, and left out when less than a quarter full.

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
        objective: What the chunks are for: documents for masked models, or for decoders, with roles beside
            the ids; or examples (`supervised`), of a source with `messages` or with `prompt` and `response`.
        documents: Whether a chunk of examples may hold several (`apart`); of no matter to documents.

    Returns:
        The corpus, complete on disk.

    Raises:
        UserError: The source cannot be read, is empty, is too short or has nothing to predict; the
            tokenizer lacks special tokens; the disk is full; or Beam is missing or fails.
    """
    cache_dir = Path(cache_dir).expanduser()
    if objective == "supervised":
        if beam is not None:
            raise UserError(
                f"data.beam prepares documents, and the corpus {sources.label(source)} is one of examples: "
                "leave data.beam out."
            )
        writer: Encoder | Chat = chat(tokenizer)
        fingerprint = f"{writer.fingerprint} {documents}"
    else:
        writer = encoder(tokenizer, special_tokens, objective == "causal")
        fingerprint = writer.fingerprint
    shares = {"heldout": heldout} | ({"validation": validation} if validation else {})
    parts = [FORMAT, sources.fingerprint(source), fingerprint, length, *shares.values()]
    key = sha256(json.dumps(parts).encode()).hexdigest()[:16]
    label = sources.label(source)
    name = re.sub(r"[^A-Za-z0-9.]+", "-", label).strip("-")[-60:]
    directory = cache_dir / "corpora" / f"{name}-{key}"
    with built_once(directory, partial(_damage, key=key), log) as unfinished:
        if unfinished is not None:
            with _workplace(unfinished, beam) as place:
                (place / "streams").mkdir()
                if isinstance(writer, Chat):
                    streams = _examples(source, writer, length, documents, shares, place, progress)
                else:
                    streams = _texts(
                        source, writer, length, shares, cache_dir, place, progress, beam
                    )
                splits = _build(streams, length, place, beam)
            facts = {
                "source": label,
                "key": key,
                "length": length,
                **shares,
                "splits": {split: _known(counts) for split, counts in splits.items()},
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


def _known(counts: Counts) -> dict[str, int]:
    return {name: value for name, value in asdict(counts).items() if value is not None}


def _texts(
    source: Source,
    enc: Encoder,
    length: int,
    shares: Shares,
    cache_dir: Path,
    place: epath.Path,
    progress: Progress | None,
    beam: BeamSettings | None,
) -> Mapping[str, Stream]:
    if beam is None:
        documents = sources.documents(source, cache_dir)
        found = write_parts(documents, enc, shares, place / "streams" / "all", progress)
        streams = {split: Stream((part,), enc.special) for split, part in found.items()}
    else:
        streams = write_streams(source, enc, shares, cache_dir, place / "streams", beam)
        if progress is not None:
            done = streams.values()
            progress(sum(s.documents for s in done), sum(s.tokens for s in done))
    check_documents(streams, sources.label(source), length, shares)
    return streams


def _examples(
    source: Source,
    writer: Chat,
    length: int,
    documents: DocumentsName,
    shares: Shares,
    place: epath.Path,
    progress: Progress | None,
) -> Mapping[str, Stream]:
    assert isinstance(source, RecordSettings)
    streams = write_examples(
        records.conversations(source),
        writer,
        length,
        documents == "apart",
        shares,
        place / "streams" / "all",
        progress,
    )
    check_examples(streams, sources.label(source), length, shares)
    return streams


def _build(
    streams: Mapping[str, Stream], length: int, place: epath.Path, beam: BeamSettings | None
) -> dict[str, Counts]:
    _write_chunks(streams, length, place, beam)
    (place / "streams").rmtree()
    (place / "downloads").rmtree(missing_ok=True)
    return {
        split: Counts(
            stream.documents,
            stream.tokens - stream.padding,
            chunk_count(stream.tokens, length, stream.layout.frame),
            stream.words,
            stream.unknown,
            *((stream.cut, stream.dropped) if isinstance(stream.layout, Rows) else ()),
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
    length: int,
    place: epath.Path,
    beam: BeamSettings | None,
) -> None:
    if beam is None:
        builder = ChunkBuilder(streams, length, place)
        config = tfds.download.DownloadConfig(try_download_gcs=False)
        failures: AbstractContextManager[None] = nullcontext()
    else:
        builder = BeamChunkBuilder(streams, length, place)
        config, failures = download_config(beam), explaining_failure(beam)
    # TFDS draws bars and prints where it downloads from; there is nothing to download.
    tfds.disable_progress_bar()
    with redirect_stdout(StringIO()), failures:
        builder.download_and_prepare(download_config=config)


def _builder_directory(directory: AnyPath) -> AnyPath:
    return directory / ChunkBuilder.name / str(ChunkBuilder.VERSION)
