"""Holding a model to what another one made of the same text."""

import jax
import jax.numpy as jnp

from das_jax.model.blocked_logits import BlockedLogits
from das_jax.objectives.collectives import Axes
from das_jax.objectives.divergence import softmax_kl, vocabulary_kl
from das_jax.objectives.masked_lm_loss import weighted_mean
from das_jax.precision import at_least_float32


def distillation_kl(
    student_BxMxN: jax.Array,
    teacher_BxMxN: jax.Array,
    weights_BxM: jax.Array,
    temperature: float = 1.0,
    axis_name: Axes | None = None,
) -> jax.Array:
    """temperature^2 KL(teacher || student) of softmaxes over the last axis, mean over the positions of the
    global batch that count, nats, [] (Hinton et al., 2015; Li and Hoiem, Learning without Forgetting, ECCV
    2016, eq. 2).

    Args:
      student_BxMxN: the model's hidden states or logits.
      teacher_BxMxN: the teacher's; no gradient flows into them.
      weights_BxM: 1 where a position counts.
      temperature: divides both before the softmax.
      axis_name: the mesh axes over which the batch is sharded, inside `shard_map`.
    """
    kl_BxM = softmax_kl(jax.lax.stop_gradient(teacher_BxMxN), student_BxMxN, temperature)
    return temperature**2 * weighted_mean(kl_BxM, weights_BxM, axis_name)


def vocabulary_distillation_kl(
    student: BlockedLogits,
    teacher: BlockedLogits,
    weights_BxM: jax.Array,
    temperature: float = 1.0,
    axis_name: Axes | None = None,
) -> jax.Array:
    """The same over the vocabulary."""
    kl_BxM = vocabulary_kl(jax.lax.stop_gradient(teacher), student, temperature)
    return temperature**2 * weighted_mean(kl_BxM, weights_BxM, axis_name)


def hidden_mse(
    hidden_BxMxD: jax.Array,
    stored_BxMxD: jax.Array,
    weights_BxM: jax.Array,
    axis_name: Axes | None = None,
) -> jax.Array:
    """Mean squared difference over features and over the positions of the global batch that count, [].

    What Dark Experience Replay does to logits (Buzzega et al., NeurIPS 2020, eq. 5), done to hidden states.

    Args:
      hidden_BxMxD: the model's hidden states.
      stored_BxMxD: what they were when the text was stored, in any type; no gradient flows into them.
      weights_BxM: 1 where a position counts.
      axis_name: the mesh axes over which the batch is sharded, inside `shard_map`.
    """
    stored_BxMxD = jax.lax.stop_gradient(at_least_float32(stored_BxMxD))
    squares_BxM = jnp.square(at_least_float32(hidden_BxMxD) - stored_BxMxD).mean(axis=-1)
    return weighted_mean(squares_BxM, weights_BxM, axis_name)
