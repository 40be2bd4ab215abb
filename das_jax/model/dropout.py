"""Dropout whose bits belong to examples, so that a result does not depend on how the batch is sharded.

A bit is a hash of (the example's seed at this place, the element's number): a dozen integer operations
that the compiler fuses into whatever reads the mask. No random bits are stored, and the backward pass
hashes again instead of keeping the mask.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np


def dropout_seeds(keys_B: jax.Array, sites: int) -> jax.Array:
    """Seeds of all places in the model where elements are dropped, [B, sites, 2] uint32.

    Args:
      keys_B: one random key per example.
      sites: how many places there are.
    """
    return jax.vmap(lambda key: jax.random.bits(key, (sites, 2), jnp.uint32))(keys_B)


def dropout(x_BxX: jax.Array, rate: float, seed_Bx2: jax.Array | None) -> jax.Array:
    """Zeroes elements with probability `rate` and scales the others up.

    Args:
      x_BxX: the activations, the batch first.
      rate: probability of a zero, exact to 2^-32.
      seed_Bx2: every example's own seed at this place, or None for no dropout.
    """
    if seed_Bx2 is None or rate == 0.0:
        return x_BxX
    return _dropout(rate, x_BxX, seed_Bx2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _dropout(rate: float, x_BxX: jax.Array, seed_Bx2: jax.Array) -> jax.Array:
    kept_BxX = kept(seed_Bx2, x_BxX.shape[1:], rate)
    return jnp.where(kept_BxX, x_BxX * jnp.asarray(1 / (1 - rate), x_BxX.dtype), 0)


def _dropout_forward(
    rate: float, x_BxX: jax.Array, seed_Bx2: jax.Array
) -> tuple[jax.Array, jax.Array]:
    return _dropout(rate, x_BxX, seed_Bx2), seed_Bx2


def _dropout_backward(
    rate: float, seed_Bx2: jax.Array, cotangent_BxX: jax.Array
) -> tuple[jax.Array, np.ndarray]:
    # Behind the barrier the compiler cannot know that this is the same mask, and keep it.
    seed_Bx2 = jax.lax.optimization_barrier(seed_Bx2)
    no_gradient = np.zeros(seed_Bx2.shape, jax.dtypes.float0)
    return _dropout(rate, cotangent_BxX, seed_Bx2), no_gradient


_dropout.defvjp(_dropout_forward, _dropout_backward)


def kept(seed_Bx2: jax.Array, shape: tuple[int, ...], rate: float) -> jax.Array:
    """True where an element stays, [B, *shape]."""
    strides = np.cumprod((1, *shape[:0:-1]), dtype=np.uint32)[::-1]
    number = functools.reduce(
        jnp.add,
        (
            jax.lax.broadcasted_iota(jnp.uint32, (1, *shape), axis + 1) * stride
            for axis, stride in enumerate(strides)
        ),
    )
    first, second = (seed_Bx2[:, word].reshape(-1, *(1 for _ in shape)) for word in range(2))
    return keep(number, first, second, rate)


def keep(number: jax.Array, first: jax.Array, second: jax.Array, rate: float) -> jax.Array:
    """True where the element of that number stays, under a seed of two words."""
    threshold = min(round(rate * 2**32), 2**32 - 1)
    return hashed(number, first, second) >= jnp.uint32(threshold)


def hashed(number: jax.Array, first: jax.Array, second: jax.Array) -> jax.Array:
    """32 bits of a number under a seed of two words, the high ones good enough to decide by.

    The 32-bit mixer `lowbias32` (Wellons, Hash Prospector, 2018), with the seed's second word added after
    its first multiplication and without its last shift, which leaves the high bits as they are.
    """
    x = number ^ first
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D) + second
    return (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
