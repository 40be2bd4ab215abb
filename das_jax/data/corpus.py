"""Prepared corpora: text becomes token chunks in ArrayRecord files, once, by a TFDS builder."""

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from hashlib import sha256
from io import StringIO
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from transformers import PreTrainedTokenizerBase

from das_jax.data import sources
from das_jax.data.tokenization import Encoder, Progress, Stream, encoder, write_streams
from das_jax.errors import UserError
from das_jax.files import built_once

# Part of every key: raise it when the same input would give other chunks.
FORMAT = 1
# TFDS keeps one shard in memory while it writes it.
SHARD_TOKENS = 1 << 22

Examples = Iterator[tuple[int, dict[str, np.ndarray]]]
"""Numbers and records, as TFDS wants them."""


class Chunks(Sequence[np.ndarray]):
    """The token chunks of one split: `chunks[i]` is tokens_T, int32.

    Read from disk when asked for, safe in threads, and cheap to send to another process.
    """

    def __init__(self, directory: Path, split: str):
        self.directory, self.split = directory, split

    @cached_property
    def _records(self) -> Sequence[Mapping[str, np.ndarray]]:
        return tfds.builder_from_directory(self.directory).as_data_source(self.split)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> np.ndarray:  # type: ignore[override]
        # A range knows negative numbers, and where it ends.
        return self._records[range(len(self))[index]]["tokens"]

    def __reduce__(self) -> tuple:
        return Chunks, (self.directory, self.split)


@dataclass(frozen=True)
class Counts:
    """The size of a split."""

    documents: int
    tokens: int
    """Tokens of the text and separators between documents; nothing that opens, closes or pads a chunk."""
    chunks: int


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

    @property
    def documents(self) -> int:
        """Documents of both splits."""
        return sum(counts.documents for counts in self.splits.values())

    @property
    def tokens(self) -> int:
        """Tokens of both splits."""
        return sum(counts.tokens for counts in self.splits.values())


def prepare(
    source: sources.Source,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    heldout: float,
    cache_dir: Path,
    progress: Progress | None = None,
) -> Corpus:
    """Turns a text into token chunks, or finds those of the same text, tokenizer and settings.

    Each chunk is [CLS] ... [SEP]; documents follow each other with a [SEP] between them. Only the
    last chunk of a split is padded, and left out when less than a quarter full.

    Args:
        source: The text.
        tokenizer: A fast HuggingFace tokenizer.
        length: Tokens in a chunk, special tokens included.
        heldout: The share of the documents kept away from training, chosen by a hash of their text.
        cache_dir: Where corpora are kept.
        progress: Called now and then with the documents and tokens done.

    Returns:
        The corpus, complete on disk.

    Raises:
        UserError: The source cannot be read, is empty or is too short; the tokenizer lacks special
            tokens; or the disk is full.
    """
    cache_dir = Path(cache_dir).expanduser()
    enc = encoder(tokenizer)
    parts = [FORMAT, sources.fingerprint(source), enc.fingerprint, length, heldout]
    key = sha256(json.dumps(parts).encode()).hexdigest()[:16]
    label = sources.label(source)
    name = re.sub(r"[^A-Za-z0-9.]+", "-", label).strip("-")[-60:]
    directory = cache_dir / "corpora" / f"{name}-{key}"
    with built_once(directory) as unfinished:
        if unfinished is not None:
            splits = _build(source, enc, length, heldout, cache_dir, unfinished, progress)
            facts = {
                "source": label,
                "key": key,
                "length": length,
                "heldout": heldout,
                "splits": {split: asdict(counts) for split, counts in splits.items()},
            }
            (unfinished / "corpus.json").write_text(json.dumps(facts, indent=2) + "\n")
    return load(directory)


def load(directory: Path) -> Corpus:
    """Opens a prepared corpus.

    Args:
        directory: `Corpus.directory`.
    """
    facts = json.loads((directory / "corpus.json").read_text())
    splits = {split: Counts(**counts) for split, counts in facts["splits"].items()}
    return Corpus(directory, facts["key"], facts["length"], splits)


def _build(
    source: sources.Source,
    enc: Encoder,
    length: int,
    heldout: float,
    cache_dir: Path,
    directory: Path,
    progress: Progress | None,
) -> dict[str, Counts]:
    streams_directory = directory / "streams"
    streams_directory.mkdir()
    documents = sources.documents(source, cache_dir)
    streams = write_streams(documents, enc, heldout, streams_directory, progress)
    _check(streams, sources.label(source), length, heldout)
    builder = ChunkBuilder(streams, enc, length, directory)
    # TFDS prints where it downloads from; there is nothing to download.
    with redirect_stdout(StringIO()):
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(try_download_gcs=False)
        )
    shutil.rmtree(streams_directory)
    shutil.rmtree(directory / "downloads", ignore_errors=True)
    return {
        split: Counts(stream.documents, stream.tokens, chunk_count(stream.tokens, length))
        for split, stream in streams.items()
    }


def _check(streams: Mapping[str, Stream], label: str, length: int, heldout: float) -> None:
    train, held = streams["train"], streams["heldout"]
    if train.documents + held.documents == 0:
        raise UserError(
            f"The corpus {label} is empty: give it at least one document that is not blank."
        )
    if train.tokens + held.tokens < length - 2:
        raise UserError(
            f"The corpus {label} has {train.tokens + held.tokens} tokens, fewer than one chunk of "
            f"{length}: give it more text or lower data.length."
        )
    if train.tokens < length - 2:
        raise UserError(
            f"The corpus {label} has only {train.tokens} tokens left for training, fewer than one chunk of "
            f"{length}: give it more documents, or lower data.heldout, which is {heldout}, or data.length."
        )
    if held.tokens == 0:
        raise UserError(
            f"None of the {train.documents} documents of the corpus {label} was held out: give it more "
            f"documents or raise data.heldout, which is {heldout}."
        )


def chunk_count(tokens: int, length: int) -> int:
    """How many chunks a stream of tokens gives; a tail less than a quarter full does not count."""
    full, tail = divmod(tokens, length - 2)
    return full + (tail > 0 and (full == 0 or tail + 2 >= length // 4))


def pack(tokens: np.ndarray, enc: Encoder, length: int) -> np.ndarray:
    """Cuts a stream of tokens into chunks; the last one is padded.

    Args:
        tokens: int32, of any number.
        enc: Knows the special tokens.
        length: T, the tokens in a chunk.

    Returns:
        chunks_NxT, int32: first, T - 2 tokens, separator.
    """
    body = length - 2
    rows = -(-len(tokens) // body)
    tail = len(tokens) - (rows - 1) * body
    chunks_NxT = np.full((rows, length), enc.padding, np.int32)
    chunks_NxT[:, 0] = enc.first
    padded = np.full(rows * body, enc.padding, np.int32)
    padded[: len(tokens)] = tokens
    chunks_NxT[:, 1:-1] = padded.reshape(rows, body)
    chunks_NxT[:-1, -1] = enc.separator
    chunks_NxT[-1, 1 + tail] = enc.separator
    return chunks_NxT


class ChunkBuilder(tfds.core.ShardBasedBuilder):
    """Cuts token streams into chunks and writes them as ArrayRecord, one shard at a time."""

    name = "chunks"
    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, streams: Mapping[str, Stream], enc: Encoder, length: int, data_dir: Path):
        self._streams, self._encoder, self._length = streams, enc, length
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        tokens = tfds.features.Tensor(shape=(self._length,), dtype=np.int32, encoding="bytes")
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict({"tokens": tokens})
        )

    def _shard_iterators_per_split(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, list[Callable[[], Examples]]]:
        del dl_manager
        per_shard = max(1, SHARD_TOKENS // self._length)
        shards: dict[str, list[Callable[[], Examples]]] = {}
        for split, stream in self._streams.items():
            count = chunk_count(stream.tokens, self._length)
            bounds = [
                (start, min(start + per_shard, count)) for start in range(0, count, per_shard)
            ]
            shards[split] = [partial(self._examples, stream.path, *bound) for bound in bounds]
        return shards

    def _examples(self, path: Path, start: int, stop: int) -> Examples:
        body = self._length - 2
        for block in range(start, stop, 1024):
            count = min(1024, stop - block) * body
            # Not a memory map: its pages would count as this process's memory.
            tokens = np.fromfile(path, "<i4", count, offset=4 * block * body)
            for index, chunk in enumerate(pack(tokens, self._encoder, self._length), block):
                yield index, {"tokens": chunk}


def _builder_directory(directory: Path) -> Path:
    return directory / ChunkBuilder.name / str(ChunkBuilder.VERSION)
