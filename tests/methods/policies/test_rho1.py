from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from das_jax.methods.policies.rho1 import selected_weights
from das_jax.training.sharding import make_sharding


def test_the_choice_is_of_the_global_batch_and_exact() -> None:
    """As one device makes it, whatever the mesh; of equal losses the first, and never more than asked for."""
    losses, reference = jax.random.normal(jax.random.key(1), (2, 16, 5)).round(1)  # Many ties.
    weights = (jax.random.uniform(jax.random.key(2), (16, 5)) < 0.7).astype(jnp.float32)
    targets = int(weights.sum())
    excess = np.where(weights > 0, np.asarray(losses - reference), -np.inf).reshape(-1)
    best = sorted(range(excess.size), key=lambda i: (-excess[i], i))[: int(np.ceil(0.6 * targets))]
    expected = np.isin(np.arange(excess.size), best).reshape(weights.shape)
    for sharding in map(make_sharding, (1, 8)):
        rows = PartitionSpec(sharding.batch)
        choose = jax.shard_map(
            partial(selected_weights, keep=0.6, axis_name=sharding.batch),
            mesh=sharding.mesh,
            in_specs=(rows, rows, rows),
            out_specs=rows,
        )
        np.testing.assert_array_equal(jax.jit(choose)(losses, reference, weights), expected)


def test_the_number_is_rounded_up_in_whole_numbers() -> None:
    for keep, targets, count in ((0.6, 5, 3), (0.6, 6, 4), (0.1, 10, 1), (0.7, 10, 7), (1.0, 9, 9)):
        zeros = jnp.zeros((1, 10))
        weights = jnp.arange(10)[None] < targets
        chosen = selected_weights(zeros, zeros, weights.astype(jnp.float32), keep)
        np.testing.assert_array_equal(chosen[0], np.arange(10) < count)  # All equal: the first.
    empty = selected_weights(jnp.zeros((2, 3)), jnp.zeros((2, 3)), jnp.zeros((2, 3)), 0.6)
    assert not empty.any()
