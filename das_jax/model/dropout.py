"""Dropout whose bits belong to examples, so that a result does not depend on how the batch is sharded."""

import jax
import jax.numpy as jnp

BITS = 16


def dropout(x_BxX: jax.Array, rate: float, keys_B: jax.Array | None, site: int) -> jax.Array:
    """Zeroes elements with probability `rate` and scales the others up.

    Every example draws its own bits from its own key, 16 of them for one element, two elements from
    one random word.

    Args:
      x_BxX: the activations, the batch first.
      rate: probability of a zero, rounded to a multiple of 2^-16.
      keys_B: one random key per example, or None for no dropout.
      site: a number that tells this place in the layer from the others that use the same keys.
    """
    if keys_B is None or rate == 0.0:
        return x_BxX
    threshold = round(rate * 2**BITS)

    def keep(key: jax.Array) -> jax.Array:
        shape = x_BxX.shape[1:]
        half = -(-shape[0] // 2)
        words = jax.random.bits(jax.random.fold_in(key, site), (half, *shape[1:]), jnp.uint32)
        low, high = words & (2**BITS - 1), words >> BITS
        return jnp.concatenate([low, high])[: shape[0]] >= threshold

    scale = 2**BITS / (2**BITS - threshold)
    return jnp.where(jax.vmap(keep)(keys_B), x_BxX * jnp.asarray(scale, x_BxX.dtype), 0)


def fold_each(keys_B: jax.Array | None, data: int | jax.Array) -> jax.Array | None:
    """Folds `data` into every example's key; None stays None."""
    if keys_B is None:
        return None
    return jax.vmap(lambda key: jax.random.fold_in(key, data))(keys_B)
