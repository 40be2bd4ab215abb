"""The loss of a language model, of logits that are all there or, where they are many, never at once: causal,
or masked at the masked positions.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from das_jax.model.blocked_logits import BlockedLogits, per_token, weighted_sum
from das_jax.objectives.collectives import Axes, global_sum
from das_jax.objectives.masked_lm_loss import mean_per_example, token_losses, weighted_mean


class LMLoss(NamedTuple):
    """Of the predictions of the global batch, [] each.

    Attributes:
      loss: what is minimised: the cross-entropy and, with its coefficient, the z-loss.
      cross_entropy: the mean cross-entropy, nats per prediction; without a gradient.
      z_loss: the mean of logsumexp(logits)^2; without a gradient.
    """

    loss: jax.Array
    cross_entropy: jax.Array
    z_loss: jax.Array


def lm_loss(
    logits: BlockedLogits,
    labels_BxT: jax.Array,
    weights_BxT: jax.Array | None = None,
    z_loss: float = 0.0,
    axis_name: Axes | None = None,
) -> LMLoss:
    """Cross-entropy over all predictions of the global batch, by their number, 0 where there is none, and the
    z-loss, which keeps the logits from drifting (Chowdhery et al., PaLM, JMLR 2023, section 5).

    Args:
      logits: of the tokens that predict.
      labels_BxT: the word that each predicts; below 0 where it predicts none.
      weights_BxT: 1 where a prediction counts; None for all.
      z_loss: the coefficient of the z-loss.
      axis_name: the mesh axes over which the batch is sharded, inside `shard_map`.
    """
    weights_BxT = _weights(logits, labels_BxT, weights_BxT)
    # Beforehand, so that a gradient of the table's size need not be divided.
    weights_BxT = weights_BxT / jnp.maximum(global_sum(jnp.sum(weights_BxT), axis_name), 1)
    loss, (losses_BxT, squares_BxT) = weighted_sum(
        partial(_minimised, z_loss), [logits], weights_BxT, labels_BxT
    )
    parts = jnp.sum(weights_BxT * losses_BxT), jnp.sum(weights_BxT * squares_BxT)
    return LMLoss(*(global_sum(x, axis_name) for x in (loss, *parts)))


def prediction_loss(
    logits: BlockedLogits,
    labels_BxM: jax.Array,
    weights_BxM: jax.Array,
    axis_name: Axes | None = None,
) -> jax.Array:
    """Mean cross-entropy over the predictions of the global batch that count, nats, [].

    Args:
      logits: of the predictions.
      labels_BxM: the words, from 0.
      weights_BxM: 1 where a prediction counts.
      axis_name: the mesh axis over which the batch is sharded, inside `shard_map`.
    """
    if logits.whole is None:
        return lm_loss(logits, labels_BxM, weights_BxM, axis_name=axis_name).loss
    return weighted_mean(token_losses(logits.whole, labels_BxM), weights_BxM, axis_name)


def prediction_losses(logits: BlockedLogits, labels_BxM: jax.Array) -> jax.Array:
    """Cross-entropy of every prediction, nats, [B, M]; labels from 0."""
    if logits.whole is None:
        return cross_entropy(logits, labels_BxM)
    return token_losses(logits.whole, labels_BxM)


def prediction_loss_per_example(
    logits: BlockedLogits, labels_BxM: jax.Array, weights_BxM: jax.Array
) -> jax.Array:
    """Mean cross-entropy over the predictions of every example that count, nats, [B]; 0 where none does."""
    return mean_per_example(prediction_losses(logits, labels_BxM), weights_BxM)


def lm_loss_per_example(
    logits: BlockedLogits, labels_BxT: jax.Array, weights_BxT: jax.Array | None = None
) -> jax.Array:
    """Mean cross-entropy over the predictions of every example, nats, [B]; 0 where there is none. See
    `lm_loss`.
    """
    weights_BxT = _weights(logits, labels_BxT, weights_BxT)
    return mean_per_example(cross_entropy(logits, labels_BxT), weights_BxT)


def cross_entropy(logits: BlockedLogits, labels_BxT: jax.Array) -> jax.Array:
    """Of every prediction, nats, [B, T]; 0 where a label is below 0."""
    return per_token(lambda *block: _cross_entropy(*block)[0], [logits], labels_BxT)


def _weights(
    logits: BlockedLogits, labels_BxT: jax.Array, weights_BxT: jax.Array | None
) -> jax.Array:
    """1 where a prediction counts, in the type of the losses."""
    weights_BxT = jnp.where(labels_BxT >= 0, 1 if weights_BxT is None else weights_BxT, 0)
    return weights_BxT.astype(jnp.promote_types(logits.hidden_BxTxD.dtype, jnp.float32))


def _minimised(
    z_loss: float, logits_CxV: jax.Array, labels_C: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """The loss, and its parts."""
    losses_C, logsumexp_C = _cross_entropy(logits_CxV, labels_C)
    squares_C = jnp.square(logsumexp_C)
    return losses_C + z_loss * squares_C if z_loss else losses_C, (losses_C, squares_C)


def _cross_entropy(logits_CxV: jax.Array, labels_C: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The cross-entropy, and logsumexp of the logits; both 0 where a label is below 0."""
    # By comparison and not by index: the gradient of that would be scattered into zeros of the logits' size.
    is_label_CxV = jnp.arange(logits_CxV.shape[-1])[None] == labels_C[:, None]
    picked_C = jnp.sum(jnp.where(is_label_CxV, logits_CxV, 0), axis=-1)
    logsumexp_C = jax.nn.logsumexp(logits_CxV, axis=-1)
    predicts_C = labels_C >= 0
    return jnp.where(predicts_C, logsumexp_C - picked_C, 0), jnp.where(predicts_C, logsumexp_C, 0)
