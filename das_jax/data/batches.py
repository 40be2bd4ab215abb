"""Batches of chunks: shuffled, shared out between hosts and read ahead by Grain.

Which examples a batch holds is a function of (seed, number of the batch) alone. Every host reads its
own rows of it, so the same run on more hosts is the same run.
"""

import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

import grain
import numpy as np
from grain.experimental import ThreadPrefetchIterDataset

# Grain's bookkeeping takes as long for a group of batches as for one, and the step waits for it.
GROUP = 8
# Each thread reads a group, so a few are plenty; another thread gets one ready.
READ_OPTIONS = grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)
READY_GROUPS = 1

Arrays = dict[str, Any]
"""`tokens`: tokens_BxT, int32; `index`: index_B, uint32; `weight`: weight_B, float32; perhaps `extra`, more
arrays with as many rows as they like.
"""


class Chunks(Protocol):
    """Random access to chunks of tokens; `das_jax.data.corpus.Chunks` is one."""

    def __len__(self) -> int: ...

    def __getitems__(self, indices: Sequence[int], /) -> np.ndarray: ...


class Shuffled:
    """An endless stream of chunks, in another order in every epoch."""

    def __init__(self, chunks: Chunks, seed: int):
        self._chunks = chunks
        self._order = grain.MapDataset.range(len(chunks)).seed(seed).shuffle().repeat()

    def read(self, positions: np.ndarray) -> np.ndarray:
        """The chunks at some positions of the stream, tokens_NxT."""
        return self._chunks.__getitems__([self._order[int(position)] for position in positions])


@dataclass(frozen=True)
class ChunkRows:
    """Chunks that are at hand as one array."""

    tokens_NxT: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens_NxT)

    def __getitems__(self, indices: Sequence[int] | np.ndarray, /) -> np.ndarray:
        return self.tokens_NxT[np.asarray(indices)]


class TrainBatches(Iterator[Arrays]):
    """An endless iterator over shuffled batches whose position can be saved.

    The position does not depend on the number of hosts.
    """

    def __init__(self, read: Callable[[int], Arrays], start: int):
        self._read = read
        self._close: Callable[[], object] = lambda: None
        self.restore({"step": start})

    def __next__(self) -> Arrays:
        batch = next(self._batches)
        self._step += 1
        return batch

    def state(self) -> dict[str, int]:
        """The position, as JSON can hold it: how many batches were taken."""
        return {"step": self._step}

    def restore(self, state: dict[str, int]) -> None:
        """Goes on as if `state` had just been returned by `state()`."""
        self._close()
        self._step = state["step"]
        groups = _groups(self._read, self._step, sys.maxsize)
        self._batches = chain.from_iterable(groups)
        self._close = weakref.finalize(self, groups.close)


def train_batches(
    chunks: Chunks,
    *,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    micro_batches: int = 1,
    start: int = 0,
) -> TrainBatches:
    """Reads chunks for ever, in another order in every epoch.

    Batch k holds the examples k * batch_size ... of one endless stream; an epoch may end inside it.
    Host p gets the p-th slice of its rows, or of each of its micro-batches, so that which examples
    make a micro-batch does not depend on the number of hosts.

    Args:
        chunks: The chunks, of T tokens each.
        batch_size: Rows over all hosts; a multiple of `process_count`.
        seed: Decides the order.
        process_index: This host.
        process_count: How many hosts there are.
        micro_batches: Into how many equal parts, one after the other, a batch is cut.
        start: The batch to begin with.

    Returns:
        An iterator over batches of B = batch_size / process_count rows: `tokens`, `index`, the
        position of a row's example in the stream (modulo 2^32), and `weight`, which is 1.
    """
    rows = host_rows(batch_size, process_index, process_count, micro_batches)
    stream = Shuffled(chunks, seed)

    def read(step: int) -> Arrays:
        positions = step * batch_size + rows
        return batch_arrays(stream.read(positions), positions)

    return TrainBatches(read, start)


def sample_batches(
    chunks: Chunks,
    *,
    examples: int,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Arrays]:
    """Reads a random sample, without replacement, of `examples` chunks or of all there are.

    Args:
        chunks: The chunks, of T tokens each.
        examples: The size of the sample, over all hosts.
        batch_size: Rows over all hosts; a multiple of `process_count`.
        seed: Decides the sample.
        process_index: This host.
        process_count: How many hosts there are.

    Returns:
        An iterator over batches of B = batch_size / process_count rows: `tokens`, `index`, the
        position in the sample, and `weight`, 0 in rows that only fill up the last batch and 1 elsewhere.
    """
    order = grain.MapDataset.range(len(chunks)).seed(seed).shuffle()
    return _finite(chunks, order, examples, batch_size, process_index, process_count)


def chosen_batches(
    chunks: Chunks,
    indices: np.ndarray,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Arrays]:
    """Reads the chunks of these indices, in order; otherwise as `sample_batches`."""
    return _finite(chunks, indices, len(indices), batch_size, process_index, process_count)


def sequential_batches(
    chunks: Chunks,
    *,
    examples: int,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Arrays]:
    """Reads the first `examples` chunks, or all there are, in order; otherwise as `sample_batches`."""
    return _finite(chunks, range(len(chunks)), examples, batch_size, process_index, process_count)


def whole_batches(count: int, batch_size: int) -> np.ndarray:
    """Positions 0, 1, ... in as few whole batches as hold `count`, [N, B]; from `count` on they fill up."""
    return np.arange(-(-count // batch_size) * batch_size).reshape(-1, batch_size)


def _finite(
    chunks: Chunks,
    order: Any,
    examples: int,
    batch_size: int,
    process_index: int,
    process_count: int,
) -> Iterator[Arrays]:
    count = min(examples, len(chunks))
    rows = host_rows(batch_size, process_index, process_count)

    def read(step: int) -> Arrays:
        positions = step * batch_size + rows
        # Rows that fill up are real text too: attention over padding alone would be not a number.
        filled = [int(order[int(position)]) for position in positions % count]
        return batch_arrays(chunks.__getitems__(filled), positions, positions < count)

    return chain.from_iterable(_groups(read, 0, -(-count // batch_size)))


def host_rows(
    batch_size: int, process_index: int, process_count: int, micro_batches: int = 1
) -> np.ndarray:
    """The rows of every batch that a host reads: its slice of each micro-batch."""
    if batch_size % (process_count * micro_batches):
        raise ValueError(f"{batch_size} rows cannot be shared out between {process_count} hosts")
    rows = np.arange(batch_size).reshape(micro_batches, process_count, -1)
    return rows[:, process_index].reshape(-1)


def batch_arrays(
    tokens_BxT: np.ndarray, positions: np.ndarray, real: np.ndarray | None = None
) -> Arrays:
    """A batch of the examples at some positions of a stream; all are `real` unless it is said."""
    weight_B = np.ones(len(positions), np.float32) if real is None else real.astype(np.float32)
    return {"tokens": tokens_BxT, "index": positions.astype(np.uint32), "weight": weight_B}


def _groups(
    read: Callable[[int], Arrays], start: int, stop: int
) -> grain.DatasetIterator[list[Arrays]]:
    """The batches from `start` to `stop`, read ahead, a few at a time."""

    def group(first: int) -> list[Arrays]:
        return [read(step) for step in range(first, min(first + GROUP, stop))]

    groups = grain.MapDataset.range(start, stop, GROUP).map(group).to_iter_dataset(READ_OPTIONS)
    return iter(ThreadPrefetchIterDataset(groups, prefetch_buffer_size=READY_GROUPS))
