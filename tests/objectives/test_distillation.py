from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from das_jax.objectives.distillation import hidden_mse
from das_jax.training.sharding import make_sharding


def test_the_mean_is_over_the_global_batch() -> None:
    """Shards hold different numbers of positions that count; the mean of their means would be another."""
    hidden, stored = jax.random.normal(jax.random.key(0), (2, 8, 3, 4))
    weights = (jnp.arange(24).reshape(8, 3) % 5 < 2).astype(jnp.float32)
    stored = stored.astype(jnp.bfloat16)
    counted = np.asarray(weights) > 0
    squares = np.square(np.asarray(hidden, np.float64) - np.asarray(stored, np.float64))
    expected_gradient = np.where(counted[..., None], 2 * (hidden - stored), 0) / counted.sum() / 4
    for sharding in map(make_sharding, (1, 8)):
        rows = PartitionSpec(sharding.batch)
        loss = jax.shard_map(
            jax.value_and_grad(partial(hidden_mse, axis_name=sharding.batch)),
            mesh=sharding.mesh,
            in_specs=(rows, rows, rows),
            out_specs=(PartitionSpec(), rows),
        )
        value, gradient = jax.jit(loss)(hidden, stored, weights)
        np.testing.assert_allclose(value, squares[counted].mean(), rtol=1e-5)
        np.testing.assert_allclose(gradient, expected_gradient, atol=1e-6)


def test_what_was_stored_is_not_far_from_itself() -> None:
    hidden = jax.random.normal(jax.random.key(1), (2, 3, 8))
    ones = jnp.ones((2, 3))
    assert hidden_mse(hidden, hidden, ones) == 0
    assert 0 < hidden_mse(hidden, hidden.astype(jnp.bfloat16), ones) < 1e-4
