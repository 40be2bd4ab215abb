"""The masked-LM loss."""

import jax
import jax.numpy as jnp

from das_jax.objectives.collectives import global_sum


def token_losses(logits_BxMxV: jax.Array, labels_BxM: jax.Array) -> jax.Array:
    """Cross-entropy of every prediction, nats, [B, M]."""
    picked_BxM = jnp.take_along_axis(logits_BxMxV, labels_BxM[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits_BxMxV, axis=-1) - picked_BxM


def masked_lm_loss(
    logits_BxMxV: jax.Array,
    labels_BxM: jax.Array,
    weights_BxM: jax.Array,
    axis_name: str | None = None,
) -> jax.Array:
    """Mean cross-entropy over all masked positions of the global batch, nats per masked token, [].

    Args:
      logits_BxMxV: predictions at the masked positions.
      labels_BxM: the original tokens.
      weights_BxM: 1 where a prediction counts.
      axis_name: the mesh axis over which the batch is sharded, inside `shard_map`.
    """
    return weighted_mean(token_losses(logits_BxMxV, labels_BxM), weights_BxM, axis_name)


def weighted_mean(
    losses_BxM: jax.Array, weights_BxM: jax.Array, axis_name: str | None = None
) -> jax.Array:
    """The mean over the predictions of the global batch that count, []; 0 where none does."""
    total = global_sum(jnp.sum(losses_BxM * weights_BxM), axis_name)
    return total / jnp.maximum(global_sum(jnp.sum(weights_BxM), axis_name), 1)


def masked_lm_loss_per_example(
    logits_BxMxV: jax.Array, labels_BxM: jax.Array, weights_BxM: jax.Array
) -> jax.Array:
    """Mean cross-entropy over the masked positions of every example, nats, [B]; 0 where there is none."""
    return mean_per_example(token_losses(logits_BxMxV, labels_BxM), weights_BxM)


def mean_per_example(losses_BxM: jax.Array, weights_BxM: jax.Array) -> jax.Array:
    """The mean over the predictions of every example that count, [B]; 0 where none does."""
    return jnp.sum(losses_BxM * weights_BxM, axis=-1) / jnp.maximum(
        jnp.sum(weights_BxM, axis=-1), 1
    )
