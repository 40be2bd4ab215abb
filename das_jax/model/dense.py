"""Dense layers, with a kernel gradient that suits the device."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from das_jax.model.architecture import Architecture


def dense(
    architecture: Architecture,
    features: int | tuple[int, ...],
    dtype: jnp.dtype,
    name: str,
    axis: int | tuple[int, ...] = -1,
) -> nn.DenseGeneral:
    """A dense layer from the last axes of its input, `axis`, to `features`."""
    return nn.DenseGeneral(
        features,
        axis=axis,
        dtype=dtype,
        kernel_init=nn.initializers.normal(architecture.initializer_range),
        dot_general=_dot_general,
        name=name,
    )


def _dot_general(x: jax.Array, kernel: jax.Array, dimension_numbers: Any, **_: Any) -> jax.Array:
    """As Flax calls `jax.lax.dot_general`."""
    (summed, _), _ = dimension_numbers
    return product(x, kernel, len(summed))


def product(
    x: jax.Array, kernel: jax.Array, summed: int = 1, dtype: jnp.dtype | None = None
) -> jax.Array:
    """The sum of products over the last axes of `x` and the first axes of `kernel`.

    Args:
      x: activations.
      kernel: what they are multiplied with.
      summed: how many axes.
      dtype: of the result; None for that of `x`.
    """
    return _product(summed, dtype or x.dtype, x, kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _product(summed: int, dtype: jnp.dtype, x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jnp.tensordot(x, kernel, summed, preferred_element_type=dtype)


def _forward(
    summed: int, dtype: jnp.dtype, x: jax.Array, kernel: jax.Array
) -> tuple[jax.Array, tuple]:
    return _product(summed, dtype, x, kernel), (x, kernel)


def _backward(
    summed: int, dtype: jnp.dtype, kept: tuple, cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    rows = range(x.ndim - summed)
    columns = tuple(range(len(rows), cotangent.ndim)), tuple(range(summed, kernel.ndim))

    def of_axes(x: jax.Array, cotangent: jax.Array) -> jax.Array:
        axes = ((tuple(rows), tuple(rows)), ((), ()))
        return jax.lax.dot_general(x, cotangent, axes, preferred_element_type=dtype)

    def of_matrices(x: jax.Array, cotangent: jax.Array) -> jax.Array:
        count = math.prod(x.shape[: len(rows)])
        to_kernel = x.reshape(count, -1).T @ cotangent.reshape(count, -1)
        return to_kernel.reshape(kernel.shape)

    to_x = jax.lax.dot_general(cotangent, kernel, (columns, ((), ())), preferred_element_type=dtype)
    # Of more than two axes, XLA on a CPU copies whole activations, transposed. On a TPU there is no need,
    # and more would be kept in HBM.
    to_kernel = jax.lax.platform_dependent(x, cotangent, cpu=of_matrices, default=of_axes)
    return to_x.astype(x.dtype), to_kernel.astype(kernel.dtype)


_product.defvjp(_forward, _backward)
