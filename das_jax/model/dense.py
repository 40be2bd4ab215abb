"""Dense layers, with gradients that suit the device."""

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
    use_bias: bool = True,
) -> nn.DenseGeneral:
    """A dense layer from the last axes of its input, `axis`, to `features`."""
    return nn.DenseGeneral(
        features,
        axis=axis,
        use_bias=use_bias,
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
    def straight(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jnp.tensordot(x, kernel, summed, preferred_element_type=dtype)

    def aligned(x: jax.Array, kernel_DxV: jax.Array) -> jax.Array:
        return straight(x, _aligned(kernel_DxV))[..., : kernel_DxV.shape[1]]

    if _fits(kernel):
        return straight(x, kernel)
    return jax.lax.platform_dependent(x, kernel, cuda=aligned, default=straight)


def _dense_forward(
    summed: int, dtype: jnp.dtype, x: jax.Array, kernel: jax.Array
) -> tuple[jax.Array, tuple]:
    return _product(summed, dtype, x, kernel), (x, kernel)


def _dense_backward(
    summed: int, dtype: jnp.dtype, kept: tuple, cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    # The factors of a product have one type, whatever the type of its sum.
    cotangent = cotangent.astype(jnp.result_type(x, kernel))
    rows = tuple(range(x.ndim - summed))
    columns = tuple(range(len(rows), cotangent.ndim)), tuple(range(summed, kernel.ndim))

    def of_axes(x: jax.Array, kernel: jax.Array, cotangent: jax.Array) -> tuple:
        return _dot(cotangent, kernel, columns, dtype), _dot(x, cotangent, (rows, rows), dtype)

    def of_matrices(x: jax.Array, kernel: jax.Array, cotangent: jax.Array) -> tuple:
        count, width = (math.prod(part) for part in (x.shape[: len(rows)], kernel.shape[:summed]))
        cotangent = cotangent.reshape(count, -1)
        to_x = _dot(cotangent, kernel.reshape(width, -1), ((1,), (1,)), dtype)
        to_kernel = _dot(x.reshape(count, width), cotangent, ((0,), (0,)), dtype)
        return to_x.reshape(x.shape), to_kernel.reshape(kernel.shape)

    def aligned(x: jax.Array, kernel_DxV: jax.Array, cotangent: jax.Array) -> tuple:
        to_x, to_kernel_DxV = of_axes(x, _aligned(kernel_DxV), _aligned(cotangent))
        return to_x, to_kernel_DxV[:, : kernel_DxV.shape[1]]

    # Of more than two axes, XLA on a CPU copies whole activations and kernels, transposed. On a TPU there
    # is no need, and more would be kept in HBM.
    to_x, to_kernel = jax.lax.platform_dependent(
        x,
        kernel,
        cotangent,
        cpu=of_matrices,
        cuda=of_axes if _fits(kernel) else aligned,
        default=of_axes,
    )
    return to_x.astype(x.dtype), to_kernel.astype(kernel.dtype)


ALIGNED = 64
"""Columns. NVIDIA's matrix units want rows that begin at multiples of 16 bytes, cuBLAS's fastest tiles are 64
and more wide."""


def _fits(kernel: jax.Array) -> bool:
    """Whether no column is missing; the vocabulary of RoBERTa has 50,265."""
    return kernel.ndim != 2 or kernel.shape[1] % 8 == 0 or kernel.shape[1] < ALIGNED


def _aligned(x: jax.Array) -> jax.Array:
    """With columns of zeros up to whole tiles, which are fused into whatever makes `x`."""
    return jnp.pad(x, ((0, 0),) * (x.ndim - 1) + ((0, -x.shape[-1] % ALIGNED),))


def _dot(one: jax.Array, other: jax.Array, axes: Any, dtype: jnp.dtype) -> jax.Array:
    """The sum of products over `axes`, some of the one's and as many of the other's."""
    return jax.lax.dot_general(one, other, (axes, ((), ())), preferred_element_type=dtype)


_product.defvjp(_dense_forward, _dense_backward)
