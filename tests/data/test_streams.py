"""Streams: what is mixed into a batch, and that it depends on nothing but the seed and the batch's number."""

from itertools import islice

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import chisquare

from das_jax.data.batches import train_batches
from das_jax.data.store import Reservoir, Rows
from das_jax.data.stream_batches import Joined, stream_batches
from das_jax.data.streams import Stream, check_streams, mixing_shares
from das_jax.errors import UserError

THOUSAND = 1000


class Numbers:
    """Chunk i of the domain d is full of the number 1000 d + i."""

    def __init__(self, domain: int, count: int):
        self.first, self.count = THOUSAND * domain, count

    def __len__(self) -> int:
        return self.count

    def __getitems__(self, indices) -> np.ndarray:
        assert all(0 <= index < self.count for index in indices)
        return np.stack([np.full(2, self.first + index, np.int32) for index in indices])


# Grain takes long to shuffle very few.
CORPORA = {
    "own": Numbers(0, 100),
    "a": Numbers(1, 100),
    "b": Numbers(2, 400),
    "general": Numbers(3, 50),
}
OWN = (Stream("own"),)
TWO = (Stream("a", 0.2), Stream("b", 0.8))
REPLAY = (Stream("own", 0.75), Stream("kept", 0.25))


def kept(count: int = 12) -> Rows:
    """Rows of domain 5, and what a method kept with row i: the number i."""
    number = np.arange(count)
    tokens = Numbers(5, count).__getitems__(number)
    reservoir = Reservoir(count, seed=0)
    return reservoir.merged({}, reservoir.rows(5, number, tokens, number=number))


def take(count: int, streams=OWN, rows=None, **settings) -> list[dict]:
    settings = {"batch_size": 8, "seed": 0} | settings
    return list(islice(stream_batches(streams, CORPORA, rows or {}, **settings), count))


def examples(batches) -> np.ndarray:
    return np.concatenate([batch["tokens"][:, 0] for batch in batches])


def of(domain: int, numbers: np.ndarray) -> list[int]:
    return [int(n) % THOUSAND for n in numbers if n // THOUSAND == domain]


def assert_epochs(stream: list[int], size: int) -> None:
    """Every chunk once an epoch, and the epochs differ."""
    epochs = [stream[i : i + size] for i in range(0, len(stream) - size + 1, size)]
    assert len(epochs) > 1
    assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) > 1


def test_shares_of_a_mixture(systems, arch: str):
    golden = systems(arch).arrays("replay")
    sizes = golden["mixing.sizes"]
    shares = {name: a for name, a in golden.items() if name.startswith("mixing.share.t")}
    assert len(shares) >= 3
    for name, expected in shares.items():
        temperature = float(name.removeprefix("mixing.share.t"))
        assert_allclose(mixing_shares(sizes, temperature), expected, rtol=1e-12)
    assert_allclose(mixing_shares(sizes, np.inf), np.full(len(sizes), 1 / len(sizes)))
    assert_allclose(mixing_shares([10**6, 10**7], 0.01), [0, 1], atol=1e-12)


@pytest.mark.parametrize("start", [0, 5, 2**40])
@pytest.mark.parametrize("host", [0, 1])
def test_own_text_alone_is_what_it_was(start: int, host: int):
    hosts = {"process_index": host, "process_count": 2, "micro_batches": 2, "start": start}
    streamed = take(3, seed=3, **hosts)
    plain = train_batches(CORPORA["own"], batch_size=8, seed=3, **hosts)
    for batch, expected in zip(streamed, plain, strict=False):
        assert batch.keys() == expected.keys()
        for name, array in batch.items():
            assert_array_equal(array, expected[name], strict=True)


def test_domains_are_drawn_by_their_shares_and_read_in_epochs():
    numbers = examples(take(200, TWO))
    counts = [len(of(1, numbers)), len(of(2, numbers))]
    assert chisquare(counts, [0.2 * 1600, 0.8 * 1600]).pvalue > 1e-3
    assert_epochs(of(1, numbers), 100)
    assert_epochs(of(2, numbers), 400)
    # Drawn for each example: not in every batch the same.
    first = numbers.reshape(200, 8) // THOUSAND == 1
    expected = chisquare(first.sum(0), np.full(8, first.sum() / 8)).pvalue
    assert expected > 1e-3
    assert first.sum(1).var() == pytest.approx(8 * 0.2 * 0.8, rel=0.3)
    assert (examples(take(50, TWO, seed=1)) // THOUSAND != numbers[:400] // THOUSAND).mean() > 0.2


def test_the_mixture_does_not_depend_on_batch_size_start_or_blocks(monkeypatch):
    numbers = examples(take(30, TWO))
    assert_array_equal(examples(take(10, TWO, batch_size=24)), numbers)
    assert_array_equal(examples(take(9, TWO, start=21)), numbers[21 * 8 :])
    monkeypatch.setattr("das_jax.data.stream_batches.BLOCK", 11)
    assert_array_equal(examples(take(30, TWO)), numbers)
    assert_array_equal(examples(take(9, TWO, start=21)), numbers[21 * 8 :])


def test_a_mixture_far_into_the_stream():
    batches = stream_batches(TWO, CORPORA, {}, batch_size=8, seed=0)
    batches.restore({"step": 10**6})
    numbers = examples(islice(batches, 40))
    assert len(of(1, numbers)) == pytest.approx(64, abs=25)
    again = take(20, TWO, batch_size=16, start=10**6 // 2)
    assert_array_equal(examples(again), numbers)


def test_replay_takes_the_place_of_new_text():
    rows = kept()
    batches = take(60, REPLAY, rows)
    for step, batch in enumerate(batches):
        replayed = of(5, batch["tokens"][:, 0])
        assert len(set(replayed)) == len(replayed) == 2
        assert_array_equal(batch["index"], np.arange(8) + 8 * step)
    numbers = examples(batches)
    assert_epochs(of(0, numbers), 100)
    assert of(0, numbers) == of(0, examples(take(45)))  # Nothing of the new text is left out.


def test_while_nothing_is_kept_the_batch_is_full_of_new_text():
    assert_array_equal(examples(take(5, REPLAY, kept_rows=4)), examples(take(5)))
    assert "extra" not in take(1, kept_rows=4)[0]


def test_kept_rows_are_drawn_uniformly_in_every_batch():
    batches = take(600, (Stream("kept"),), kept(), batch_size=2)
    replayed = examples(batches).reshape(600, 2) - 5 * THOUSAND
    once = np.bincount(replayed.ravel(), minlength=12)
    assert chisquare(once).pvalue > 1e-3
    pairs = np.zeros((12, 12))
    np.add.at(pairs, tuple(np.sort(replayed, axis=1).T), 1)
    assert chisquare(pairs[np.triu_indices(12, 1)]).pvalue > 1e-3


def test_general_text_is_an_endless_stream_of_its_own():
    streams = (*TWO, Stream("general", 0.25))
    numbers = examples(take(25, streams, batch_size=24))
    assert len(of(3, numbers)) == 25 * 6
    assert_epochs(of(3, numbers), 50)
    assert_array_equal(numbers[numbers < 3 * THOUSAND], examples(take(25, TWO, batch_size=18)))


def test_rows_beside_the_batch():
    rows = kept()
    batches = take(50, OWN, rows, batch_size=1, kept_rows=6)
    assert_array_equal(examples(batches), examples(take(50, batch_size=1)))
    index = np.concatenate([batch["extra"]["index"] for batch in batches])
    assert_array_equal(index, np.arange(300, dtype=np.uint32), strict=True)
    drawn = np.array([batch["extra"]["number"] for batch in batches])
    assert all(len(set(row)) == 6 for row in drawn.tolist())
    assert chisquare(np.bincount(drawn.ravel(), minlength=12)).pvalue > 1e-3
    for batch, number in zip(batches, drawn, strict=True):
        assert batch["extra"].keys() == {"tokens", "domain", "number", "index"}
        assert_array_equal(batch["extra"]["tokens"][:, 1], 5 * THOUSAND + number)
    both = take(20, REPLAY, rows, kept_rows=2)
    replayed = [set(of(5, batch["tokens"][:, 0])) for batch in both]
    assert replayed != [set(batch["extra"]["number"].tolist()) for batch in both]


def test_in_a_recovery_kept_rows_stand_for_new_text():
    streams, rows = (Stream("own"), Stream("kept", 0.25), Stream("general", 0.25)), kept()
    numbers = [b["tokens"][:, 0] for b in take(20, streams, rows, recovery=7)]
    usual = [b["tokens"][:, 0] for b in take(20, streams, rows)]
    for step, batch in enumerate(numbers):
        replayed = of(5, batch)
        assert len(set(replayed)) == len(replayed) == (6 if step < 7 else 2)
        assert of(3, batch) == of(3, usual[step])
    own = of(0, np.concatenate(numbers))
    assert own == of(0, np.concatenate(usual[:13])), "from its beginning, and nothing left out"
    for start in (3, 9):
        again = take(5, streams, rows, recovery=7, start=start)
        assert_array_equal(examples(again), np.concatenate(numbers[start : start + 5]))
    assert_array_equal(examples(take(5, streams, recovery=3)), examples(take(5, streams)))
    with pytest.raises(UserError, match=r"takes 6 of the rows .* only 4 are kept"):
        take(1, streams, kept(4), recovery=1)


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_and_micro_batches_have_their_parts_of_every_stream(hosts: int):
    streams = (*TWO, Stream("kept", 0.25), Stream("general", 0.125))
    settings = {"batch_size": 16, "kept_rows": 8, "micro_batches": 2, "start": 3}
    alone = take(4, streams, kept(), **settings)
    shares = [
        take(4, streams, kept(), process_index=host, process_count=hosts, **settings)
        for host in range(hosts)
    ]

    def together(get) -> np.ndarray:
        """Rows of all hosts in the order of one: micro-batches first."""
        parts = [np.stack([get(b) for b in share]) for share in shares]
        cut = [part.reshape(4, 2, -1, *part.shape[2:]) for part in parts]
        return np.concatenate(cut, axis=2).reshape(4, -1, *parts[0].shape[2:])

    for name in ("tokens", "index", "weight"):
        whole = np.stack([batch[name] for batch in alone])
        assert_array_equal(together(lambda b, name=name: b[name]), whole)
    for name in ("tokens", "number", "index"):
        whole = np.stack([batch["extra"][name] for batch in alone])
        assert_array_equal(together(lambda b, name=name: b["extra"][name]), whole)
    for batch in alone:
        halves = batch["tokens"][:, 0].reshape(2, 8)
        assert [(len(of(5, half)), len(of(3, half))) for half in halves] == [(2, 1), (2, 1)]


def test_corpora_under_one_numbering():
    joined = Joined([CORPORA["a"], CORPORA["b"], CORPORA["own"]])
    assert len(joined) == 600
    numbers = joined.__getitems__([599, 0, 99, 100, 499, 500, 3])[:, 0]
    assert numbers.tolist() == [99, 1000, 1099, 2000, 2399, 0, 1003]


def test_replayed_rows_are_never_of_the_current_domain():
    reservoir, store = Reservoir(4, seed=0), {}
    for domain, name in enumerate(["own", "a", "b"]):
        numbers = examples(take(20, (Stream(name, 0.5), Stream("kept", 0.5)), store))
        assert set(numbers // THOUSAND) <= set(range(domain + 1))
        replayed = sum(len(of(earlier, numbers)) for earlier in range(domain))
        assert replayed == (80 if domain else 0)
        chunks = CORPORA[name]
        indices = reservoir.survivors(store, domain, len(chunks))
        fresh = reservoir.rows(domain, indices, chunks.__getitems__(indices))
        store = reservoir.merged(store, fresh)


@pytest.mark.parametrize(
    ("streams", "settings", "sentence"),
    [
        ([Stream("own"), Stream("news", 0.1)], {}, "no stream 'news': the streams are own, a, b, "),
        (
            [Stream("own"), Stream("general", 0.01)],
            {},
            "'general' is 0.01, which makes no row of a batch of 8",
        ),
        (
            [Stream("own"), Stream("general", 0.5), Stream("kept", 0.5)],
            {},
            r"'general' \(0.5\) and .* 'kept' \(0.5\) leave no row",
        ),
        ([Stream("own"), Stream("kept", 0.5)], {"kept": 3}, "takes 4 of the rows .* only 3 are"),
        (OWN, {"kept": 3, "kept_rows": 8}, "takes 8 of the rows .* only 3 are kept: raise"),
    ],
)
def test_streams_that_cannot_be(streams, settings, sentence: str):
    with pytest.raises(UserError, match=sentence):
        check_streams(streams, CORPORA, 8, **settings)


def test_a_stream_that_does_not_exist_is_found_before_anything_is_read():
    with pytest.raises(UserError, match=r"'c'.* own, a, b, general, kept"):
        stream_batches((Stream("c"),), CORPORA, {}, batch_size=8, seed=0)
