"""Dense layers, whose matrix products have all tokens as the rows of one matrix."""

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
        dot_general=dot_general_of_rows,
        name=name,
    )


def dot_general_of_rows(
    x: jax.Array, kernel: jax.Array, dimension_numbers: Any, **options: Any
) -> jax.Array:
    """`jax.lax.dot_general` of the last axes of `x` and the first axes of `kernel`, as two matrices.

    Of arrays with more axes XLA on a CPU copies whole activations, transposed, for the kernel's gradient.

    Args:
      x: activations, any number of axes before those that are summed over.
      kernel: what they are multiplied with.
      dimension_numbers: `((last axes of x, first axes of kernel), ((), ()))`, as Flax gives them.
      **options: of `jax.lax.dot_general`.
    """
    (summed, _), _ = dimension_numbers
    rows, columns = x.shape[: -len(summed)], kernel.shape[len(summed) :]
    features = math.prod(kernel.shape[: len(summed)])
    product = jax.lax.dot_general(
        x.reshape(-1, features),
        kernel.reshape(features, -1),
        (((1,), (0,)), ((), ())),
        **options,
    )
    return product.reshape(*rows, *columns)
