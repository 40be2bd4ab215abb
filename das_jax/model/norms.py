"""LayerNorm and RMSNorm, their statistics in float32."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from das_jax.model.architecture import Architecture
from das_jax.precision import at_least_float32


def norm(architecture: Architecture, dtype: jnp.dtype, name: str) -> nn.Module:
    """The architecture's norm, over the last axis."""
    if architecture.norm == "rms":
        return RMSNorm(
            architecture.layer_norm_eps, architecture.norm_offset, dtype=dtype, name=name
        )
    return LayerNorm(architecture.layer_norm_eps, architecture.norm_bias, dtype=dtype, name=name)


def identity(x: jax.Array) -> jax.Array:
    """Where no norm stands."""
    return x


class LayerNorm(nn.Module):
    """(x - mean(x)) / sqrt(var(x) + eps) * scale + bias (Ba, Kiros and Hinton, 2016).

    Attributes:
      epsilon: what is added to the variance.
      use_bias: whether there is a bias.
      dtype: of what is returned.
    """

    epsilon: float
    use_bias: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale_D = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        bias_D = None
        if self.use_bias:
            bias_D = self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        return _layer_norm(self.epsilon, self.dtype, x, scale_D, bias_D)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _layer_norm(
    epsilon: float, dtype: jnp.dtype, x: jax.Array, scale_D: jax.Array, bias_D: jax.Array | None
) -> jax.Array:
    return _layer_norm_forward(epsilon, dtype, x, scale_D, bias_D)[0]


def _layer_norm_forward(
    epsilon: float, dtype: jnp.dtype, x: jax.Array, scale_D: jax.Array, bias_D: jax.Array | None
) -> tuple:
    wide = at_least_float32(x)
    mean = jnp.mean(wide, axis=-1)
    centred = wide - mean[..., None]
    # Not the mean square less the squared mean, which cancels.
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1) + epsilon)
    y = centred * (inverse[..., None] * _broadcast(scale_D, x))
    if bias_D is not None:
        y = y + _broadcast(bias_D, x)
    return y.astype(dtype), (x, mean, inverse, scale_D, bias_D)


def _layer_norm_backward(
    epsilon: float, dtype: jnp.dtype, kept: tuple, cotangent: jax.Array
) -> Any:
    x, mean, inverse, scale_D, bias_D = kept
    # XLA would rather compute the statistics again, and on a GPU, where it then cannot sum over the tokens
    # in the same kernel, write what is summed for `scale` to memory, in float32.
    mean, inverse = jax.lax.platform_dependent(
        mean, inverse, cuda=lambda *x: jax.lax.optimization_barrier(x), default=lambda *x: x
    )
    cotangent = at_least_float32(cotangent)
    normal = (at_least_float32(x) - mean[..., None]) * inverse[..., None]
    scaled = cotangent * _broadcast(scale_D, x)
    along = jnp.mean(scaled * normal, axis=-1, keepdims=True)
    to_x = inverse[..., None] * (scaled - jnp.mean(scaled, axis=-1, keepdims=True) - normal * along)
    tokens = tuple(range(x.ndim - 1))
    to_scale_D = jnp.sum(cotangent * normal, axis=tokens).astype(scale_D.dtype)
    to_bias_D = None if bias_D is None else jnp.sum(cotangent, axis=tokens).astype(bias_D.dtype)
    return to_x.astype(x.dtype), to_scale_D, to_bias_D


_layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


def _broadcast(x_D: jax.Array, like: jax.Array) -> jax.Array:
    return x_D.reshape((1,) * (like.ndim - 1) + x_D.shape)


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
