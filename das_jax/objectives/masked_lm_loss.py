"""The masked-LM loss."""

import jax
import jax.numpy as jnp
import numpy as np

from das_jax.objectives.collectives import Axes, global_sum


@jax.custom_vjp
def token_losses(logits_BxMxV: jax.Array, labels_BxM: jax.Array) -> jax.Array:
    """Cross-entropy of every prediction, nats, [B, M]."""
    return _token_losses_forward(logits_BxMxV, labels_BxM)[0]


def _token_losses_forward(logits_BxMxV: jax.Array, labels_BxM: jax.Array) -> tuple:
    picked_BxM = jnp.take_along_axis(logits_BxMxV, labels_BxM[..., None], axis=-1)[..., 0]
    highest_BxM = jnp.max(logits_BxMxV, axis=-1)
    sum_BxM = jnp.sum(jnp.exp(logits_BxMxV - highest_BxM[..., None]), axis=-1)
    losses_BxM = jnp.log(sum_BxM) + highest_BxM - picked_BxM
    return losses_BxM, (logits_BxMxV, labels_BxM, highest_BxM, sum_BxM)


def _token_losses_backward(kept: tuple, cotangent_BxM: jax.Array) -> tuple:
    # In one pass over the logits. Autodiff scatters the label's part into an array of zeros of their size.
    logits_BxMxV, labels_BxM, highest_BxM, sum_BxM = kept
    powers_BxMxV = jnp.exp(logits_BxMxV - highest_BxM[..., None])
    word = jax.lax.broadcasted_iota(labels_BxM.dtype, logits_BxMxV.shape, logits_BxMxV.ndim - 1)
    of_label_BxMxV = jnp.where(word == labels_BxM[..., None], -cotangent_BxM[..., None], 0)
    to_logits_BxMxV = powers_BxMxV * (cotangent_BxM / sum_BxM)[..., None] + of_label_BxMxV
    return to_logits_BxMxV, np.zeros(labels_BxM.shape, jax.dtypes.float0)


token_losses.defvjp(_token_losses_forward, _token_losses_backward)


def masked_lm_loss(
    logits_BxMxV: jax.Array,
    labels_BxM: jax.Array,
    weights_BxM: jax.Array,
    axis_name: Axes | None = None,
) -> jax.Array:
    """Mean cross-entropy over all masked positions of the global batch, nats per masked token, [].

    Args:
      logits_BxMxV: predictions at the masked positions.
      labels_BxM: the original tokens.
      weights_BxM: 1 where a prediction counts.
      axis_name: the mesh axes over which the batch is sharded, inside `shard_map`.
    """
    return weighted_mean(token_losses(logits_BxMxV, labels_BxM), weights_BxM, axis_name)


def weighted_mean(
    losses_BxM: jax.Array, weights_BxM: jax.Array, axis_name: Axes | None = None
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
