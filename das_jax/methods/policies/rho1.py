"""RHO-1: the loss counts only where the model is worst in comparison with a reference (Lin et al., NeurIPS
2024).
"""

from fractions import Fraction

import jax
import jax.numpy as jnp

from das_jax.objectives.collectives import global_rows


def selected_weights(
    losses_BxM: jax.Array,
    reference_BxM: jax.Array,
    weights_BxM: jax.Array,
    keep: float,
    axis_name: str | None = None,
) -> jax.Array:
    """The weights of the targets with the largest excess loss over the reference, 0 elsewhere, [B, M].

    Of the n targets of the global batch the ceil(keep n) largest, exactly as many: of equal ones the first in
    the order of the batch. The choice is not differentiated.

    Args:
      losses_BxM: the model's cross-entropy of every target, nats.
      reference_BxM: the reference model's, on the same corruption.
      weights_BxM: 1 where there is a target.
      keep: the share that counts, in thousandths at the finest.
      axis_name: the mesh axis over which the batch is sharded, inside `shard_map`.
    """
    excess_BxM = jax.lax.stop_gradient(losses_BxM - reference_BxM)
    excess_BxM = jnp.where(weights_BxM > 0, excess_BxM, -jnp.inf)
    excess_N = global_rows(excess_BxM.reshape(-1), axis_name)
    targets = jnp.sum(global_rows((weights_BxM > 0).reshape(-1), axis_name))
    # In whole numbers: 0.6 * 5 may round to more than 3.
    share = Fraction(keep).limit_denominator(1000)
    count = -(-targets * share.numerator // share.denominator)
    best_N = jnp.argsort(-excess_N, stable=True)
    chosen_N = jnp.zeros(excess_N.shape, bool).at[best_N].set(jnp.arange(excess_N.size) < count)
    first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * excess_BxM.size
    own = jax.lax.dynamic_slice_in_dim(chosen_N, first, excess_BxM.size)
    return weights_BxM * own.reshape(weights_BxM.shape)
