"""Holding a model to what another one made of the same text."""

import jax
import jax.numpy as jnp

from das_jax.objectives.collectives import global_sum
from das_jax.precision import at_least_float32


def hidden_mse(
    hidden_BxMxD: jax.Array,
    stored_BxMxD: jax.Array,
    weights_BxM: jax.Array,
    axis_name: str | None = None,
) -> jax.Array:
    """Mean squared difference over features and over the positions of the global batch that count, [].

    What Dark Experience Replay does to logits (Buzzega et al., NeurIPS 2020, eq. 5), done to hidden states.

    Args:
      hidden_BxMxD: the model's hidden states.
      stored_BxMxD: what they were when the text was stored, in any type; no gradient flows into them.
      weights_BxM: 1 where a position counts.
      axis_name: the mesh axis over which the batch is sharded, inside `shard_map`.
    """
    stored_BxMxD = jax.lax.stop_gradient(at_least_float32(stored_BxMxD))
    squares_BxM = jnp.square(at_least_float32(hidden_BxMxD) - stored_BxMxD).mean(axis=-1)
    total = global_sum(jnp.sum(squares_BxM * weights_BxM), axis_name)
    return total / jnp.maximum(global_sum(jnp.sum(weights_BxM), axis_name), 1)
