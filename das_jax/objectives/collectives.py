"""What a loss needs of the other devices; all of it does nothing without a mesh axis."""

import jax


def global_sum(x: jax.Array, axis_name: str | None) -> jax.Array:
    """The sum of `x` over the shards of the batch."""
    return x if axis_name is None else jax.lax.psum(x, axis_name)


def global_rows(x_BxX: jax.Array, axis_name: str | None) -> jax.Array:
    """The rows of all shards; a gradient through them reaches the shard that each row came from."""
    return x_BxX if axis_name is None else jax.lax.all_gather(x_BxX, axis_name, tiled=True)


def per_shard(x: jax.Array, axis_name: str | None) -> jax.Array:
    """Marks a constant as every shard's own, so that its gradient is not summed over the shards."""
    return x if axis_name is None else jax.lax.pcast(x, axis_name, to="varying")
