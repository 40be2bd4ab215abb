"""Reads training batches from several streams.

What a batch holds is a function of (seed, number of the batch) alone, as in `data.batches`: which rows are of
which stream is the same in every batch, and nothing is drawn from a state. A run on other hosts, or begun
again, reads the same rows.
"""

import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from das_jax.data.batches import (
    Arrays,
    Chunks,
    Shuffled,
    TrainBatches,
    batch_arrays,
    host_rows,
)
from das_jax.data.hashing import hashed, smallest
from das_jax.data.store import Rows
from das_jax.data.streams import GENERAL, KEPT, OWN, Stream, check_streams

# Domains are drawn that many positions at a time; so many counts are kept.
BLOCK = 1 << 16

Read = Callable[[int, np.ndarray], np.ndarray]
"""Reads tokens_NxT for the number of a batch and the ranks of rows among those of the stream in a batch."""


def stream_batches(
    streams: Sequence[Stream],
    corpora: Mapping[str, Chunks],
    kept: Mapping[str, np.ndarray],
    *,
    batch_size: int,
    seed: int,
    kept_rows: int = 0,
    recovery: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    micro_batches: int = 1,
    start: int = 0,
) -> TrainBatches:
    """Reads batches of several streams for ever.

    The corpora are read in another order in every epoch, each chunk once an epoch. The rows of "general" and
    "kept" are spread evenly over the batch, so that micro-batches and hosts have their parts of them. Kept
    rows are drawn for every batch, uniformly and without replacement. "own" alone is `train_batches`.

    Args:
        streams: Which, and their shares.
        corpora: The chunks of every corpus, of T tokens each; not of "kept".
        kept: The rows that the method kept, of earlier domains; see `data.store`.
        batch_size: Rows over all hosts; a multiple of `process_count` times `micro_batches`.
        seed: Decides the order, and all that is drawn.
        kept_rows: Kept rows beside every batch, over all hosts; such a multiple, too.
        recovery: The batches, the first ones, in which kept rows stand where new text would be; new text is
            read from its beginning after them. While no row is kept, there are none.
        process_index: This host.
        process_count: How many hosts there are.
        micro_batches: Into how many equal parts, one after the other, a batch is cut.
        start: The batch to begin with.

    Returns:
        An iterator over batches of B = batch_size / process_count rows: `tokens`, `index`, the position of a
        row among all rows so far (modulo 2^32), and `weight`, which is 1. If kept rows are asked for and any
        are there, also `extra`: this host's kept_rows / process_count rows of every array of the store but
        the keys, and their own `index`, for their random numbers.

    Raises:
        UserError: As `check_streams`.
    """
    held = len(kept["tokens"]) if kept else 0
    check_streams(streams, corpora, batch_size, kept=held, kept_rows=kept_rows)
    if not held:
        streams, kept_rows = [stream for stream in streams if stream.name != KEPT], 0
        recovery = 0
    hosts = process_index, process_count, micro_batches
    rows, extra_rows = host_rows(batch_size, *hosts), host_rows(kept_rows, *hosts)
    usual = _parts(streams, corpora, kept, batch_size, seed, rows, recovery)
    recovering = []
    if recovery:
        without = _without_new_text(streams, batch_size)
        check_streams(without, corpora, batch_size, kept=held)
        recovering = _parts(without, corpora, kept, batch_size, seed, rows)
    beside = _Draws(kept, kept_rows, seed, "extra") if kept_rows else None

    def read(step: int) -> Arrays:
        parts = recovering if step < recovery else usual
        tokens = [part.read(step, part.ranks) for part in parts]
        tokens_BxT = _assembled([part.places for part in parts], tokens)
        batch = batch_arrays(tokens_BxT, step * batch_size + rows)
        if beside is not None:
            batch["extra"] = beside.rows(step, extra_rows)
        return batch

    return TrainBatches(read, start)


def _without_new_text(streams: Sequence[Stream], batch_size: int) -> list[Stream]:
    """The streams of a batch in which kept rows stand for new text."""
    general = [stream for stream in streams if stream.name == GENERAL]
    rows = batch_size - sum(stream.rows(batch_size) for stream in general)
    return [*general, Stream(KEPT, rows / batch_size)]


class _Part(NamedTuple):
    """This host's rows of a batch that are of one stream, or of the domains."""

    places: np.ndarray  # Among the host's rows.
    ranks: np.ndarray  # Among the rows of the same stream in the batch, over all hosts.
    read: Read


def _parts(
    streams: Sequence[Stream],
    corpora: Mapping[str, Chunks],
    kept: Mapping[str, np.ndarray],
    batch_size: int,
    seed: int,
    rows: np.ndarray,
    first: int = 0,
) -> list[_Part]:
    """Domains are read from their beginning in the batch `first`."""

    def part(taken: np.ndarray, read: Read) -> _Part:
        places = np.flatnonzero(np.isin(rows, taken))
        return _Part(places, np.searchsorted(taken, rows[places]), read)

    def corpus(stream: Stream) -> Shuffled:
        return Shuffled(corpora[stream.name], _seed_of(stream.name, seed))

    parts, free = [], np.arange(batch_size)
    for stream in streams:
        if stream.counted:
            count = stream.rows(batch_size)
            taken = free[np.arange(count) * len(free) // count]
            free = np.setdiff1d(free, taken)
            if stream.name == KEPT:
                parts.append(part(taken, _Draws(kept, count, seed, KEPT).tokens))
            else:
                parts.append(part(taken, _of_every_batch(corpus(stream), count)))
    domains = [stream for stream in streams if not stream.counted]
    if domains:
        shares = [stream.share for stream in domains]
        mixture = _Mixture([corpus(stream) for stream in domains], shares, seed)
        parts.append(part(free, _of_every_batch(mixture, len(free), first)))
    return [part for part in parts if len(part.places)]


def _seed_of(name: str, seed: int) -> int:
    """Corpora of equal size have orders of their own."""
    return seed if name == OWN else int(hashed(seed, "order", name)[0] >> np.uint64(32))


def _of_every_batch(stream: "Shuffled | _Mixture", count: int, first: int = 0) -> Read:
    """Reads a stream of which every batch, from `first` on, holds `count` rows."""
    return lambda step, ranks: stream.read((step - first) * count + ranks)


def _assembled(places: Sequence[np.ndarray], rows: Sequence[np.ndarray]) -> np.ndarray:
    """Rows of several sources, each in its place."""
    if len(rows) == 1:
        return rows[0]
    return np.concatenate(rows)[np.argsort(np.concatenate(places))]


class Joined:
    """Chunks of several corpora under one numbering, one corpus after the other."""

    def __init__(self, corpora: Sequence[Chunks]):
        self._corpora = corpora
        self._ends = np.cumsum([len(chunks) for chunks in corpora])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitems__(self, indices: Sequence[int], /) -> np.ndarray:
        wanted_N = np.asarray(indices)
        corpus_N = np.searchsorted(self._ends, wanted_N, side="right")
        starts = [0, *self._ends[:-1].tolist()]
        read = np.unique(corpus_N).tolist()
        places = [np.flatnonzero(corpus_N == corpus) for corpus in read]
        rows = [
            self._corpora[corpus].__getitems__((wanted_N[place] - starts[corpus]).tolist())
            for corpus, place in zip(read, places, strict=True)
        ]
        return _assembled(places, rows)


class _Draws:
    """`count` of the kept rows for every batch, drawn without replacement."""

    def __init__(self, kept: Mapping[str, np.ndarray], count: int, seed: int, purpose: str):
        self._kept, self._count, self._words = kept, count, (seed, purpose)
        self._all = np.arange(len(kept["tokens"]))

    def tokens(self, step: int, ranks: np.ndarray) -> np.ndarray:
        return self._kept["tokens"][self._drawn(step, ranks)]

    def rows(self, step: int, ranks: np.ndarray) -> Rows:
        drawn = self._drawn(step, ranks)
        arrays = {name: array[drawn] for name, array in self._kept.items() if name != "key"}
        return arrays | {"index": (step * self._count + ranks).astype(np.uint32)}

    def _drawn(self, step: int, ranks: np.ndarray) -> np.ndarray:
        return smallest(hashed(*self._words, step, self._all), self._count)[ranks]


class _Mixture:
    """An endless stream of examples of several domains, each drawn from its position."""

    def __init__(self, domains: Sequence[Shuffled], shares: Sequence[float], seed: int):
        self._domains, self._seed = domains, seed
        bounds = np.cumsum(shares)[:-1] / np.sum(shares)
        self._bounds = (np.minimum(bounds, 1 - 2.0**-53) * 2.0**64).astype(np.uint64)
        self._before = [np.zeros(len(domains), np.int64)]
        self._counting = threading.Lock()
        self._block = functools.lru_cache(maxsize=4)(self._read_block)

    def read(self, positions: np.ndarray) -> np.ndarray:
        """The chunks at some positions, tokens_NxT."""
        if len(self._domains) == 1:
            return self._domains[0].read(positions)
        domain_N, rank_N = self._places(positions)
        places = [np.flatnonzero(domain_N == domain) for domain in np.unique(domain_N)]
        rows = [self._domains[domain_N[place[0]]].read(rank_N[place]) for place in places]
        return _assembled(places, rows)

    def _places(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The domain of every example, and its position among those of its domain."""
        domain_N, rank_N = np.empty_like(positions), np.empty_like(positions)
        block_N, offset_N = np.divmod(positions, BLOCK)
        for block in np.unique(block_N):
            domain_P, rank_P = self._block(int(block))
            inside = block_N == block
            domain_N[inside] = domain_P[offset_N[inside]]
            rank_N[inside] = rank_P[offset_N[inside]]
        return domain_N, rank_N

    def _read_block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        before = self._counts_before(block)
        domain_P = np.searchsorted(self._bounds, self._numbers(block), side="right")
        rank_P = np.empty(BLOCK, np.int64)
        for domain, first in enumerate(before):
            inside = np.flatnonzero(domain_P == domain)
            rank_P[inside] = first + np.arange(len(inside))
        return domain_P, rank_P

    def _numbers(self, block: int) -> np.ndarray:
        return hashed(self._seed, "domain", np.arange(block * BLOCK, (block + 1) * BLOCK))

    def _counts_before(self, block: int) -> np.ndarray:
        """How many examples of every domain come before a block; it takes a look at all of them, once."""
        with self._counting:
            while len(self._before) <= block:
                numbers_P = self._numbers(len(self._before) - 1)
                below = [np.count_nonzero(numbers_P < bound) for bound in self._bounds]
                self._before.append(self._before[-1] + np.diff([0, *below, BLOCK]))
            return self._before[block]
