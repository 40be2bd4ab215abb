import jax
import jax.numpy as jnp
import numpy as np

from das_jax.data.masking import Masking

MASKING = Masking(mask_token=4, special_tokens=(0, 1, 2, 3, 4), vocab_size=1000, rate=0.15)
TOKENS = jnp.concatenate(
    [
        jnp.full((64, 1), 2),
        jax.random.randint(jax.random.key(0), (64, 98), 5, 1000),
        jnp.full((64, 1), 3),
    ],
    axis=1,
)


def keys(seed: int, count: int = 64) -> jax.Array:
    return jax.random.split(jax.random.key(seed), count)


def test_the_share_of_each_action() -> None:
    masked = MASKING.corrupt(TOKENS, keys(0))
    at = np.take_along_axis(np.asarray(masked.tokens), np.asarray(masked.positions), axis=1)
    count = masked.weights.sum(axis=1)
    assert (count == round(98 * 0.15)).all()
    counted = np.asarray(masked.weights) > 0
    mask, kept = (at == 4)[counted].mean(), (at == masked.labels)[counted].mean()
    assert abs(mask - 0.8) < 0.05
    assert abs(kept - 0.1) < 0.04


def test_special_tokens_are_never_predicted_and_others_never_changed_unseen() -> None:
    masked = MASKING.corrupt(TOKENS, keys(1))
    counted = np.asarray(masked.weights) > 0
    assert not np.isin(np.asarray(masked.labels)[counted], MASKING.special_tokens).any()
    changed = np.asarray(masked.tokens != TOKENS)
    predicted = np.zeros_like(changed)
    for row, positions, weights in zip(predicted, masked.positions, counted, strict=True):
        row[np.asarray(positions)[weights]] = True
    assert not (changed & ~predicted).any()
    labels = np.take_along_axis(np.asarray(TOKENS), np.asarray(masked.positions), axis=1)
    np.testing.assert_array_equal(masked.labels, labels)


def test_padded_text_has_the_same_share_masked() -> None:
    short = TOKENS.at[:, 40:].set(0)
    masked = MASKING.corrupt(short, keys(2))
    assert (masked.weights.sum(axis=1) == round(39 * 0.15)).all()
    counted = np.asarray(masked.weights) > 0
    assert (np.asarray(masked.positions)[counted] < 40).all()


def test_how_many_predictions_a_text_has_is_known_before_they_are_drawn() -> None:
    ends = jnp.arange(64)[:, None] + 2
    texts = jnp.where(jnp.arange(100)[None] < ends, TOKENS, 0)
    counts = MASKING.num_predictions(texts)
    np.testing.assert_array_equal(counts, MASKING.corrupt(texts, keys(2)).weights.sum(axis=1))
    assert len(set(np.asarray(counts))) > 5
    np.testing.assert_array_equal(
        MASKING.num_predictions(texts.reshape(2, 32, 100)), counts.reshape(2, 32)
    )


def test_every_visit_is_fresh_and_every_example_its_own() -> None:
    first, again, other = (MASKING.corrupt(TOKENS, keys(seed)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.tokens, again.tokens)
    assert (first.positions != other.positions).mean() > 0.5
    same_text = MASKING.corrupt(jnp.broadcast_to(TOKENS[:1], TOKENS.shape), keys(3))
    assert len({tuple(sorted(row)) for row in np.asarray(same_text.positions)}) == 64


def test_every_position_is_drawn_equally_often() -> None:
    masked = MASKING.corrupt(jnp.repeat(TOKENS, 20, axis=0), keys(5, 64 * 20))
    frequency = np.bincount(np.asarray(masked.positions).ravel(), minlength=100)[1:99]
    expected = frequency.mean()
    assert np.abs(frequency / expected - 1).max() < 0.35


def test_a_text_of_special_tokens_only_predicts_nothing() -> None:
    masked = MASKING.corrupt(jnp.full((1, 12), 2), keys(0, 1))
    assert masked.weights.sum() == 0
    np.testing.assert_array_equal(masked.tokens, jnp.full((1, 12), 2))
