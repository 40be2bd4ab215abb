import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from das_jax.model.blocked_logits import BlockedLogits, Unembedding
from das_jax.objectives.lm_loss import LMLoss, lm_loss, lm_loss_per_example
from das_jax.objectives.masked_lm_loss import masked_lm_loss, masked_lm_loss_per_example
from das_jax.training.sharding import make_sharding

B, T, D, V = 8, 5, 4, 11
COEFFICIENT = 0.01


def of(hidden: jax.Array) -> BlockedLogits:
    return BlockedLogits(Unembedding(jax.random.normal(jax.random.key(0), (V, D)), block=3), hidden)


def inputs() -> tuple[jax.Array, jax.Array, jax.Array]:
    """Examples with unequal numbers of predictions, one with none, and one that a weight leaves out."""
    hidden_key, label_key = jax.random.split(jax.random.key(1))
    counts = jnp.arange(T)[None] < jnp.array([5, 0, 1, 2, 5, 4, 3, 5])[:, None]
    labels = jnp.where(counts, jax.random.randint(label_key, (B, T), 0, V), -100)
    return jax.random.normal(hidden_key, (B, T, D)), labels, jnp.ones((B, T)).at[4].set(0)


def test_the_mean_is_over_the_predictions_of_the_global_batch() -> None:
    hidden, labels, weights = inputs()
    counted, words = (labels >= 0) * weights, jnp.maximum(labels, 0)

    def expected_of(hidden: jax.Array) -> tuple[jax.Array, LMLoss]:
        logits = of(hidden).unembedding(hidden.reshape(-1, D)).reshape(B, T, V)
        squares = jnp.square(jax.nn.logsumexp(logits, axis=-1))
        z_loss = jnp.sum(squares * counted) / counted.sum()
        cross_entropy = masked_lm_loss(logits, words, counted)
        loss = cross_entropy + COEFFICIENT * z_loss
        return loss, LMLoss(loss, cross_entropy, z_loss)

    expected = jax.grad(expected_of, has_aux=True)(hidden)
    sharding = make_sharding(8)
    rows = PartitionSpec(sharding.batch)

    def found_of(hidden: jax.Array, *others: jax.Array) -> tuple[jax.Array, LMLoss]:
        found = lm_loss(of(hidden), *others, COEFFICIENT, sharding.batch)
        return found.loss, found

    mapped = jax.shard_map(
        jax.grad(found_of, has_aux=True),
        mesh=sharding.mesh,
        in_specs=(rows, rows, rows),
        out_specs=(rows, PartitionSpec()),
    )
    found = jax.jit(mapped)(hidden, labels, weights)
    for a, e in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-6)


def test_an_example_has_the_mean_of_its_own_predictions() -> None:
    hidden, labels, weights = inputs()
    found = lm_loss_per_example(of(hidden), labels, weights)
    logits = of(hidden).unembedding(hidden.reshape(-1, D)).reshape(B, T, V)
    counted = (labels >= 0) * weights
    expected = masked_lm_loss_per_example(logits, jnp.maximum(labels, 0), counted)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert found[1] == found[4] == 0


def test_where_nothing_is_predicted_nothing_is_lost() -> None:
    hidden, labels, _ = inputs()
    none = jnp.full_like(labels, -100)
    loss, gradient = jax.value_and_grad(lambda x: lm_loss(of(x), none, z_loss=1.0).loss)(hidden)
    assert loss == 0
    assert not gradient.any()
