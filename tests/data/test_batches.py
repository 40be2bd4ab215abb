"""Batches: every epoch complete, every host its rows, every position reachable."""

import json
import threading
from collections.abc import Sequence
from itertools import islice

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from das_jax.data.batches import sample_batches, sequential_batches, train_batches


class Chunks(list):
    """Chunks in memory."""

    def __getitems__(self, indices: Sequence[int]) -> np.ndarray:
        return np.stack([self[index] for index in indices])


def chunks(count: int) -> Chunks:
    """Chunk i is full of the number i."""
    return Chunks(np.full(4, i, np.int32) for i in range(count))


def examples(batches) -> list[int]:
    return [int(row[0]) for batch in batches for row in batch["tokens"]]


def take(count: int, n_chunks: int = 10, **settings):
    settings = {"batch_size": 4, "seed": 0} | settings
    return list(islice(train_batches(chunks(n_chunks), **settings), count))


def assert_same(first, second):
    assert len(first) == len(second)
    for one, two in zip(first, second, strict=True):
        assert one.keys() == two.keys()
        for name in one:
            assert_array_equal(one[name], two[name])


def test_shapes_and_types():
    (batch,) = take(1)
    assert {name: (array.shape, array.dtype) for name, array in batch.items()} == {
        "tokens": ((4, 4), np.int32),
        "index": ((4,), np.uint32),
        "weight": ((4,), np.float32),
    }
    assert_array_equal(batch["weight"], 1)


def test_every_epoch_holds_every_chunk_once_in_another_order():
    stream = examples(take(10))
    epochs = [stream[i : i + 10] for i in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 4


def test_the_index_counts_on_over_epochs():
    index = np.concatenate([batch["index"] for batch in take(10)])
    assert_array_equal(index, np.arange(40))


def test_the_seed_decides_the_order():
    assert examples(take(5)) == examples(take(5))
    assert examples(take(5)) != examples(take(5, seed=1))


def test_a_corpus_smaller_than_a_batch_wraps_around():
    stream = examples(take(3, n_chunks=3, batch_size=8))
    assert [sorted(stream[i : i + 3]) for i in range(0, 24, 3)] == [[0, 1, 2]] * 8


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_together_read_the_batch_that_one_host_reads(hosts: int):
    alone = take(6)
    shares = [take(6, process_index=host, process_count=hosts) for host in range(hosts)]
    together = [
        {name: np.concatenate([share[step][name] for share in shares]) for name in alone[step]}
        for step in range(6)
    ]
    assert_same(alone, together)


def test_a_micro_batch_has_the_same_examples_on_any_number_of_hosts():
    alone = take(3)
    shares = [take(3, process_index=host, process_count=2, micro_batches=2) for host in range(2)]
    for step in range(3):
        halves = [share[step]["index"].reshape(2, -1) for share in shares]
        assert_array_equal(np.concatenate(halves, axis=1).ravel(), alone[step]["index"])
        assert all(half.shape == (2, 1) for half in halves)


def test_rows_that_hosts_cannot_share():
    with pytest.raises(ValueError, match="4 rows"):
        take(1, process_count=3)


def test_started_later_it_is_the_same_stream():
    assert_same(take(8)[5:], take(3, start=5))


def test_the_saved_position_continues_the_stream_on_any_number_of_hosts():
    batches = train_batches(chunks(10), batch_size=4, seed=3)
    for _ in range(5):
        next(batches)
    state = json.loads(json.dumps(batches.state()))
    rest = list(islice(batches, 4))

    other = train_batches(chunks(10), batch_size=4, seed=3, process_index=1, process_count=2)
    next(other)
    other.restore(state)
    assert other.state() == state
    assert_same([{k: v[2:] for k, v in batch.items()} for batch in rest], list(islice(other, 4)))


def test_positions_far_into_the_stream():
    batch = take(1, start=2**40)[0]
    assert_array_equal(batch["index"], np.arange(4))  # 2^42 modulo 2^32
    assert len(set(examples([batch]))) >= 2


def test_a_failing_read_reaches_the_caller():
    class Broken(Chunks):
        def __getitems__(self, indices):
            raise OSError("the disk is gone")

    batches = train_batches(Broken(chunks(3)), batch_size=2, seed=0)
    with pytest.raises(OSError, match="the disk is gone"):
        next(batches)


def test_what_reads_ahead_ends_with_the_iterator():
    before = set(threading.enumerate())
    batches = train_batches(chunks(10), batch_size=4, seed=0)
    next(batches)
    batches.restore({"step": 7})
    next(batches)
    started = [thread for thread in threading.enumerate() if thread not in before]
    assert started
    del batches
    for thread in started:
        thread.join(10)
        assert not thread.is_alive()


def test_a_sample_is_drawn_without_replacement():
    batches = list(sample_batches(chunks(100), examples=10, batch_size=4, seed=0))
    weight = np.concatenate([batch["weight"] for batch in batches])
    assert_array_equal(weight, [1] * 10 + [0] * 2)
    sample = examples(batches)
    assert len(set(sample[:10])) == 10
    assert sample[:10] != list(range(10))
    other = examples(sample_batches(chunks(100), examples=10, batch_size=4, seed=1))
    assert set(sample) != set(other)


def test_rows_that_fill_up_are_real_chunks():
    (batch,) = sample_batches(chunks(3), examples=9, batch_size=8, seed=0)
    assert_array_equal(batch["weight"], [1] * 3 + [0] * 5)
    assert sorted(examples([batch])[:3]) == [0, 1, 2]
    assert_array_equal(batch["index"], np.arange(8))


def test_a_sample_of_all_covers_all():
    batches = list(sample_batches(chunks(10), examples=99, batch_size=5, seed=0))
    assert sorted(examples(batches)) == list(range(10))
    assert all((batch["weight"] == 1).all() for batch in batches)


def test_sequential_batches_are_the_first_chunks_in_order():
    batches = list(sequential_batches(chunks(9), examples=6, batch_size=4))
    assert examples(batches)[:6] == [0, 1, 2, 3, 4, 5]
    assert_array_equal(np.concatenate([b["weight"] for b in batches]), [1] * 6 + [0] * 2)


@pytest.mark.parametrize("kind", ["sample", "sequential"])
def test_hosts_share_finite_batches(kind: str):
    def read(**hosts):
        if kind == "sample":
            return list(sample_batches(chunks(9), examples=7, batch_size=4, seed=5, **hosts))
        return list(sequential_batches(chunks(9), examples=7, batch_size=4, **hosts))

    shares = [read(process_index=host, process_count=2) for host in range(2)]
    together = [
        {name: np.concatenate([one[name], two[name]]) for name in one}
        for one, two in zip(*shares, strict=True)
    ]
    assert_same(read(), together)
