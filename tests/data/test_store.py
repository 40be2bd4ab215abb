"""The reservoir: a uniform sample of what was seen, whatever way it was seen."""

import functools
import io

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from scipy.stats import chisquare, norm

from das_jax.data import store
from das_jax.data.store import Reservoir, Rows
from das_jax.errors import UserError

SEEDS = 2000
UNLIKELY = 1e-4


def fill(reservoir: Reservoir, counts, kept: Rows | None = None, first: int = 0) -> Rows:
    """The rows kept after domains of so many chunks; a chunk's tokens are its domain and index."""
    kept = kept or {}
    for domain, count in enumerate(counts, first):
        indices = reservoir.survivors(kept, domain, int(count))
        kept = reservoir.merged(kept, rows(reservoir, domain, indices))
    return kept


def rows(reservoir: Reservoir, domain: int, indices) -> Rows:
    indices = np.asarray(indices)
    tokens = np.stack([np.full_like(indices, domain), indices], axis=1).astype(np.int32)
    return reservoir.rows(domain, indices, tokens, square=indices**2)


def assert_same(one: Rows, two: Rows) -> None:
    assert one.keys() == two.keys() == {"tokens", "domain", "key", "square"}
    for name, array in one.items():
        assert_array_equal(array, two[name], strict=True)


@functools.cache
def sampled(capacity: int, seen: tuple[int, int]) -> np.ndarray:
    """For many seeds, which of the chunks of two domains are kept, [seed, chunk]."""
    inside = np.zeros((SEEDS, sum(seen)), np.float32)
    for seed in range(SEEDS):
        kept = fill(Reservoir(capacity, seed), seen)
        inside[seed, kept["tokens"][:, 1] + (kept["domain"] == 1) * seen[0]] = 1
    return inside


def of_golden(golden: dict[str, np.ndarray]) -> np.ndarray:
    return sampled(int(golden["capacity"]), tuple(golden["seen"].tolist()))


def test_every_chunk_and_every_pair_has_the_same_chance(systems, arch: str):
    golden = systems(arch).arrays("replay")
    inside = of_golden(golden)
    assert (inside.sum(1) == golden["capacity"]).all()
    chunks, p = inside.shape[1], float(golden["inclusion"])
    # The counts vary as those of independent draws do.
    scores = (inside.sum(0) - SEEDS * p) / np.sqrt(SEEDS * p * (1 - p))
    assert abs((scores**2).sum() - chunks) < norm.isf(UNLIKELY) * np.sqrt(2 * chunks)

    together, q = inside.T @ inside, float(golden["pair_inclusion"])
    counts = together[np.triu_indices(chunks, 1)]
    assert counts.mean() / SEEDS == pytest.approx(q, rel=1e-4)
    assert ((counts - SEEDS * q) ** 2).mean() == pytest.approx(SEEDS * q * (1 - q), rel=0.05)
    neighbours, expected = np.diagonal(together, 1).sum(), (chunks - 1) * SEEDS * q
    assert abs(neighbours - expected) < norm.isf(UNLIKELY) * np.sqrt(expected)


def test_the_number_kept_of_a_domain_is_hypergeometric(systems, arch: str):
    golden = systems(arch).arrays("replay")
    inside = of_golden(golden)
    pmf = golden["count_of_first_domain.pmf"]
    counts = np.bincount(inside[:, : golden["seen"][0]].sum(1).astype(int), minlength=len(pmf))
    often = pmf * SEEDS >= 5
    observed = np.append(counts[often], counts[~often].sum())
    expected = np.append(pmf[often], pmf[~often].sum()) * SEEDS
    assert chisquare(observed, expected * SEEDS / expected.sum()).pvalue > UNLIKELY


@pytest.mark.parametrize("equal", [False, True])
def test_what_is_kept_does_not_depend_on_parts_or_their_order(equal: bool, monkeypatch):
    reservoir, counts = Reservoir(20, seed=5, equal=equal), (60, 8, 90)
    expected = fill(reservoir, counts)
    # Every host has seen some of every domain, and they meet in any order.
    order = np.random.default_rng(0)
    for parts in (1, 3, 7):
        pieces = [
            rows(reservoir, domain, piece)
            for domain, count in enumerate(counts)
            for piece in np.array_split(order.permutation(count), parts)
        ]
        order.shuffle(pieces)
        assert_same(functools.reduce(reservoir.merged, pieces, {}), expected)
    monkeypatch.setattr(store, "KEYS_AT_ONCE", 7)
    assert_same(fill(reservoir, counts), expected)


def test_a_store_that_was_saved_is_filled_on_as_if_it_had_not_been():
    reservoir = Reservoir(20, seed=1)
    saved = io.BytesIO()
    np.savez(saved, **fill(reservoir, (50, 30)))
    saved.seek(0)
    restored = dict(np.load(saved))
    assert_same(fill(reservoir, (40,), restored, first=2), fill(reservoir, (50, 30, 40)))


def test_rows_stay_whole():
    kept = fill(Reservoir(30, seed=2), (50, 60))
    assert_array_equal(kept["tokens"][:, 0], kept["domain"])
    assert_array_equal(kept["square"], kept["tokens"][:, 1].astype(int) ** 2)
    assert len({tuple(row) for row in kept["tokens"].tolist()}) == 30
    assert (np.diff(kept["key"].astype(float)) > 0).all()


def test_only_survivors_are_read():
    reservoir = Reservoir(20, seed=3)
    kept = fill(reservoir, (50,))
    indices = reservoir.survivors(kept, 1, 10_000)
    assert len(indices) <= 20
    assert (np.diff(indices) > 0).all()
    after = fill(reservoir, (50, 10_000))
    assert_array_equal(np.sort(after["tokens"][after["domain"] == 1, 1]), indices)


def test_domains_of_equal_parts():
    reservoir = Reservoir(20, seed=0, equal=True)

    def parts(*counts: int) -> list[int]:
        return np.bincount(fill(reservoir, counts)["domain"]).tolist()

    assert parts(50) == [20]
    assert parts(50, 5000) == [10, 10]
    assert parts(50, 5000, 70) == [7, 7, 6]
    assert parts(50, 4, 5000) == [8, 4, 8]  # What a small domain lacks, the others have.
    first = fill(Reservoir(6, seed=0, equal=True), (50,))["key"]
    both = fill(Reservoir(6, seed=0, equal=True), (50, 50))
    assert_array_equal(both["key"][both["domain"] == 0], first[:3])  # Of each, the smallest keys.


def test_seeds_and_domains_keep_different_chunks():
    def kept(seed: int, first: int = 0) -> list[int]:
        return sorted(fill(Reservoir(20, seed), (400,), first=first)["tokens"][:, 1].tolist())

    assert kept(0) == kept(0)
    assert len({tuple(kept(seed, first)) for seed in (0, 1) for first in (0, 1)}) == 4


def test_a_buffer_larger_than_what_was_seen():
    with pytest.raises(UserError, match=r"method\.buffer is 60, more than the 50 .* at most 50"):
        fill(Reservoir(60, seed=0), (50, 100))
    assert len(fill(Reservoir(50, seed=0), (50, 100))["key"]) == 50
