"""LayerNorm and RMSNorm, their statistics in float32."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from das_jax.model.architecture import Architecture
from das_jax.precision import at_least_float32


def norm(architecture: Architecture, dtype: jnp.dtype, name: str) -> nn.Module:
    """The architecture's norm, over the last axis; LayerNorm's slow variance, as the fast one cancels."""
    if architecture.norm == "rms":
        return RMSNorm(
            architecture.layer_norm_eps, architecture.norm_offset, dtype=dtype, name=name
        )
    return nn.LayerNorm(
        epsilon=architecture.layer_norm_eps,
        dtype=dtype,
        use_bias=architecture.norm_bias,
        use_fast_variance=False,
        name=name,
    )


def identity(x: jax.Array) -> jax.Array:
    """Where no norm stands."""
    return x


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * (offset + scale) (Zhang and Sennrich, 2019).

    Attributes:
      epsilon: what is added to the mean square.
      offset: 0, and the scale starts at 1; or 1, and it starts at 0, as in Gemma.
      dtype: of what is returned. Without an offset it is rounded before it is multiplied, as in Llama.
    """

    epsilon: float
    offset: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.initializers.constant(1 - self.offset)
        scale = self.param("scale", init, (x.shape[-1],))
        shape = (1,) * (x.ndim - 1) + scale.shape
        wide = at_least_float32(x)
        square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
        wide = wide * jax.lax.rsqrt(square + self.epsilon)
        if self.offset:
            return (wide * (self.offset + scale).reshape(shape)).astype(self.dtype)
        return wide.astype(self.dtype) * scale.reshape(shape).astype(self.dtype)
