"""What a loss needs of the other devices; all of it does nothing without a mesh axis.

Inside `shard_map` every shard of the batch has parameters of its own, and the engine adds the
gradients of all shards up. So a loss must count each of its terms once: a term that each shard knows
of its own rows goes through `global_sum`, one that every shard computes alike through `global_mean`.
"""

from typing import Any

import jax

Axes = str | tuple[str, ...]
"""A mesh axis, or several that together are one: the last is the one along which neighbours follow."""


def global_sum(x: jax.Array, axis_name: Axes | None) -> jax.Array:
    """The sum of `x` over the shards of the batch."""
    return x if axis_name is None else jax.lax.psum(x, axis_name)


def global_mean(x: jax.Array, axis_name: Axes | None) -> jax.Array:
    """The mean of `x` over the shards: the value itself of what all shards compute alike, such as a
    penalty on the parameters, with a gradient that is counted once.
    """
    return x if axis_name is None else jax.lax.pmean(x, axis_name)


def global_rows(x_BxX: jax.Array, axis_name: Axes | None, exchange: Any = None) -> jax.Array:
    """The rows of all shards; a gradient through them reaches the shard that each row came from.

    With `exchange`, rows and gradients travel in that type.
    """
    if axis_name is None:
        return x_BxX
    sent_BxX = x_BxX if exchange is None else x_BxX.astype(exchange)
    return jax.lax.all_gather(sent_BxX, axis_name, tiled=True).astype(x_BxX.dtype)


def per_shard(tree: Any, axis_name: Axes | None) -> Any:
    """Marks what is the same everywhere as every shard's own, so that its gradient is not summed over
    the shards; along no axis at all, (), nothing is.
    """
    return tree if not axis_name else jax.lax.pcast(tree, axis_name, to="varying")
