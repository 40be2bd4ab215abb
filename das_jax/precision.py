"""Where numbers must be float32, whatever type the matrix products have."""

import jax
import jax.numpy as jnp


def at_least_float32(x: jax.Array) -> jax.Array:
    """Widens bfloat16 and float16; float32 and float64 stay."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
