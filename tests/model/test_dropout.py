import jax
import jax.numpy as jnp
import numpy as np
import pytest

from das_jax.model.dropout import dropout, dropout_seeds, hashed, kept


def seeds(rows: int, sites: int = 1) -> jax.Array:
    return dropout_seeds(jax.random.split(jax.random.key(0), rows), sites)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_it_has_its_rate_and_keeps_the_mean(rate: float) -> None:
    x = jnp.ones((64, 33, 50))
    dropped = dropout(x, rate, seeds(64)[:, 0])
    zeros = np.asarray(dropped == 0).mean(axis=(1, 2))
    deviation = (rate * (1 - rate) / x[0].size) ** 0.5
    np.testing.assert_allclose(zeros.mean(), rate, atol=4 * deviation / 8)
    assert np.abs(zeros - rate).max() < 4 * deviation
    np.testing.assert_allclose(dropped.mean(), 1, atol=0.01)


def test_bits_are_the_examples_own_and_every_place_has_others() -> None:
    seeds_BxSx2 = seeds(8, sites=2)
    x = jnp.ones((8, 40, 70))
    whole = dropout(x, 0.3, seeds_BxSx2[:, 0])
    np.testing.assert_array_equal(dropout(x[5:], 0.3, seeds_BxSx2[5:, 0]), whole[5:])
    elsewhere = dropout(x, 0.3, seeds_BxSx2[:, 1])
    for other in (elsewhere, whole[::-1], whole[:, ::-1], whole[:, :, 1:], whole[:, 1:]):
        same = (other == 0) == (whole[:, : other.shape[1], : other.shape[2]] == 0)
        deviation = (0.58 * 0.42 / same.size) ** 0.5
        assert abs(np.asarray(same).mean() - (0.7**2 + 0.3**2)) < 4 * deviation
    assert dropout(x, 0.3, None) is x
    assert dropout(x, 0.0, seeds_BxSx2[:, 0]) is x


def test_the_gradient_passes_where_the_value_does() -> None:
    seed = seeds(4)[:, 0]
    x = jax.random.normal(jax.random.key(1), (4, 9, 30))
    value, backward = jax.vjp(lambda x: dropout(x, 0.25, seed), x)
    np.testing.assert_allclose(backward(x)[0], value, rtol=1e-6)


def test_no_two_elements_share_a_number() -> None:
    """Neither in a row, nor in a column, nor among heads: equal numbers would have equal bits."""
    mask = kept(jnp.zeros((1, 2), jnp.uint32), (3, 5, 7), 0.5)
    flat = hashed(jnp.arange(105, dtype=jnp.uint32), jnp.uint32(0), jnp.uint32(0)) >= jnp.uint32(
        2**31
    )
    np.testing.assert_array_equal(mask.reshape(-1), flat)


def test_the_hash_passes_for_random() -> None:
    """High bits, which decide, are uniform; every bit of the number and of the seed's first word moves
    them all by halves, and so does another second word.
    """
    number = jnp.arange(2**16, dtype=jnp.uint32)
    for first, second in ((0, 0), (1, 2), (2**31, 0xDEADBEEF)):
        words = (jnp.uint32(first), jnp.uint32(second))
        bits = hashed(number, *words)
        counts = np.bincount(np.asarray(bits >> 24), minlength=256)
        chi_square = ((counts - 256) ** 2 / 256).sum()
        assert chi_square < 255 + 4 * (2 * 255) ** 0.5
        for flipped in (
            *(hashed(number ^ jnp.uint32(1 << k), *words) for k in range(16)),
            *(hashed(number, words[0] ^ jnp.uint32(1 << k), words[1]) for k in range(32)),
            hashed(number, words[0], words[1] + jnp.uint32(0x9E3779B9)),
        ):
            for high in (31, 30, 29, 28):
                share = np.asarray(((bits ^ flipped) >> high) & 1).mean()
                assert abs(share - 0.5) < 0.02
