"""Which of a batch are the largest, over all devices."""

from fractions import Fraction

import jax
import jax.numpy as jnp

from das_jax.objectives.collectives import Axes, global_rows


def global_ranks(x_N: jax.Array, axis_name: Axes | None = None) -> jax.Array:
    """The rank of every number among those of all shards, 0 for the largest, int32, [N]; of equal ones the
    first in the order of the batch ranks higher.

    Args:
      x_N: this shard's numbers.
      axis_name: the mesh axes over which the batch is sharded, inside `shard_map`.
    """
    all_M = global_rows(x_N, axis_name)
    ranks_M = jnp.zeros(all_M.shape, jnp.int32)
    ranks_M = ranks_M.at[jnp.argsort(-all_M, stable=True)].set(
        jnp.arange(all_M.size, dtype=jnp.int32)
    )
    first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * x_N.size
    return jax.lax.dynamic_slice_in_dim(ranks_M, first, x_N.size)


def part_of(count: jax.Array, share: float) -> jax.Array:
    """ceil(share * count), in whole numbers, as 0.6 * 5 may round to more than 3.

    Args:
      count: of whatever it is a part, [].
      share: in thousandths at the finest.
    """
    exact = Fraction(share).limit_denominator(1000)
    return -(-count * exact.numerator // exact.denominator)
