"""Chunks of tokens on disk: cut out of streams, written as ArrayRecord by TFDS, read back by number."""

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, lru_cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader
from etils import epath
from tensorflow_datasets.core.writer import ExampleWriter
from tensorflow_datasets.proto import tf_example_pb2

from das_jax import stopping
from das_jax.data.layouts import chunk_count
from das_jax.data.tokenization import Stream
from das_jax.errors import UserError

# TFDS keeps one shard in memory while it writes it.
SHARD_TOKENS = 1 << 22
# A process may have 1,024 files open.
OPEN_FILES = 256

Examples = Iterator[tuple[int, dict[str, np.ndarray]]]
"""Numbers and records, as TFDS wants them."""


class Chunks(Sequence[np.ndarray]):
    """The token chunks of one split: `chunks[i]` is tokens_T, int32.

    Read from disk when asked for, safe in threads, and cheap to send to another process.
    """

    def __init__(self, directory: Path, split: str):
        self.directory, self.split = directory, split

    @cached_property
    def _shards(self) -> tuple[list[str], np.ndarray]:
        """The files, and the number of the first chunk of each, and of all."""
        with self._explaining_damage():
            info = tfds.builder_from_directory(self.directory).info.splits[self.split]
            return [str(path) for path in info.filepaths], np.cumsum([0, *info.shard_lengths])

    @cached_property
    def _reader(self) -> Callable[[str], ArrayRecordReader]:
        # Chunks are read in no order, so what lies around one is of no use.
        options = {"options": "readahead_buffer_size:0", "file_reader_buffer_size": 4096}
        return lru_cache(OPEN_FILES)(partial(ArrayRecordReader, **options))

    def __len__(self) -> int:
        return int(self._shards[1][-1])

    def __getitem__(self, index: int) -> np.ndarray:  # type: ignore[override]
        # A range knows negative numbers, and where it ends.
        return self.__getitems__([range(len(self))[index]])[0]

    def __getitems__(self, indices: Sequence[int]) -> np.ndarray:
        """Reads many chunks at once, tokens_NxT; far cheaper than one after the other.

        Raises:
            UserError: A file was damaged after it was opened.
        """
        paths, starts = self._shards
        wanted = np.asarray(indices)
        shards = np.searchsorted(starts, wanted, side="right") - 1
        records = np.empty(len(wanted), object)
        with self._explaining_damage():
            for shard in np.unique(shards):
                rows = np.flatnonzero(shards == shard)
                read = self._reader(paths[shard]).read
                records[rows] = read((wanted[rows] - starts[shard]).tolist())
            return np.stack([_tokens(record) for record in records])

    @contextmanager
    def _explaining_damage(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Of TFDS, Riegeli, protobuf and numpy.
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(
                f"The prepared corpus {self.directory} cannot be read ({reason}): its files were damaged or "
                "removed; start the command again, and it is prepared anew."
            ) from error

    def __reduce__(self) -> tuple:
        return Chunks, (self.directory, self.split)


def _tokens(record: bytes) -> np.ndarray:
    # What TFDS decodes, without what it does for all the features it knows.
    features = tf_example_pb2.Example.FromString(record).features.feature
    return np.frombuffer(features["tokens"].bytes_list.value[0], "<i4")


class ChunkBuilder(tfds.core.ShardBasedBuilder):
    """Cuts token streams into chunks and writes them as ArrayRecord, one shard at a time."""

    name = "chunks"
    VERSION = tfds.core.Version("1.0.0")

    def __init__(
        self,
        streams: Mapping[str, Stream],
        length: int,
        data_dir: epath.Path,
    ):
        self._streams, self._length = streams, length
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(builder=self, features=features(self._length))

    def _shard_iterators_per_split(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, list[Callable[[], Examples]]]:
        del dl_manager
        return {
            split: [
                partial(self._examples, stream, range) for range in ranges(stream, self._length)
            ]
            for split, stream in self._streams.items()
        }

    def _examples(self, stream: Stream, numbers: range) -> Examples:
        return examples(numbers, stream, self._length)


def features(length: int) -> tfds.features.FeaturesDict:
    """What a record holds: tokens_T."""
    tokens = tfds.features.Tensor(shape=(length,), dtype=np.int32, encoding="bytes")
    return tfds.features.FeaturesDict({"tokens": tokens})


def ranges(stream: Stream, length: int) -> list[range]:
    """The numbers of the chunks that a stream gives, shard by shard."""
    count = chunk_count(stream.tokens, length, stream.layout.frame)
    per_shard = max(1, SHARD_TOKENS // length)
    return [range(start, min(start + per_shard, count)) for start in range(0, count, per_shard)]


def examples(numbers: range, stream: Stream, length: int) -> Examples:
    """Cuts the chunks of these numbers out of a stream, a block at a time."""
    body = length - stream.layout.frame
    for start in range(numbers.start, numbers.stop, 1024):
        stopping.check()
        stop = min(start + 1024, numbers.stop)
        tokens = stream.read(start * body, stop * body)
        for number, chunk in enumerate(stream.layout.pack(tokens, length), start):
            yield number, {"tokens": chunk}


class BeamChunkBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Does as `ChunkBuilder` does, but any worker cuts any range of chunks, and writes any shard."""

    name = ChunkBuilder.name
    VERSION = ChunkBuilder.VERSION

    def __init__(
        self,
        streams: Mapping[str, Stream],
        length: int,
        data_dir: epath.Path,
    ):
        self._streams, self._length = streams, length
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        # Without shuffling, TFDS sorts by the number of the chunk.
        return tfds.core.DatasetInfo(
            builder=self, features=features(self._length), disable_shuffling=True
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager
        return {split: self._generate_examples(stream) for split, stream in self._streams.items()}

    def _generate_examples(self, stream: Stream) -> Any:
        import apache_beam as beam

        cut = partial(examples, stream=stream, length=self._length)
        numbers = ranges(stream, self._length)
        return beam.Create(numbers) | beam.Reshuffle() | "cut" >> beam.FlatMap(cut)

    def _example_writer(self) -> ExampleWriter:
        return _RemoteWriter(self.info.file_format)


class _RemoteWriter(ExampleWriter):
    """Writes ArrayRecord where its own writer, which knows only local files, cannot."""

    def write(self, path: epath.PathLike, examples: Iterable[tuple[Any, bytes]]) -> None:
        with TemporaryDirectory() as directory:
            local = Path(directory) / "shard"
            super().write(local, examples)
            copy(epath.Path(local), epath.Path(path))


def copy(source: epath.Path, target: epath.Path) -> None:
    # From one file system to another, which epath's own copy is not made for.
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as reading, target.open("wb") as writing:
        shutil.copyfileobj(reading, writing)
