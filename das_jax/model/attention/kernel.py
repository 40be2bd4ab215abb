"""How a kernel is run: under `shard_map`, and on the CPU interpreted, slowly, for tests."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas import triton as plgpu

LANES = 128
"""Numbers side by side in a TPU's register."""


def run_kernel(
    kernel: Callable[..., None],
    static: tuple[Any, ...],
    inputs: Sequence[tuple[jax.Array, pl.BlockSpec]],
    outputs: Sequence[tuple[jax.ShapeDtypeStruct, pl.BlockSpec]],
    like: jax.Array,
    grid: tuple[int, ...],
    compiler_params: pltpu.CompilerParams | plgpu.CompilerParams,
    cost: pl.CostEstimate,
    scratch: Sequence[Any] = (),
    name: str | None = None,
) -> tuple[jax.Array, ...]:
    """The kernel's outputs.

    Args:
      kernel: a function of what is static, then of references to inputs, outputs and scratch memory.
      static: its first arguments.
      inputs: arrays, and what the kernel sees of each at a place of the grid.
      outputs: the shapes of its results, and what it sees of them.
      like: an array that differs between the devices of a mesh as the results do.
      grid: how often it runs along every axis.
      compiler_params: for a TPU, or for a GPU.
      cost: of all of it; what the planner reads.
      scratch: memory on the chip that lives from one place of the grid to the next.
      name: by which the planner knows it; the kernel's own if None.
    """
    arrays, in_specs = zip(*inputs, strict=True)
    shapes, out_specs = zip(*outputs, strict=True)
    axes = jax.typeof(like).manual_axis_type

    def call(interpret: bool, *arrays: jax.Array) -> tuple[jax.Array, ...]:
        return tuple(
            pl.pallas_call(
                functools.partial(kernel, *static),
                grid=grid,
                in_specs=in_specs,
                out_specs=out_specs,
                out_shape=[
                    jax.ShapeDtypeStruct(x.shape, x.dtype, manual_axis_type=axes) for x in shapes
                ],
                scratch_shapes=scratch,
                compiler_params=compiler_params,
                cost_estimate=cost,
                interpret=interpret,
                name=name or kernel.__name__.strip("_"),
            )(*arrays)
        )

    return jax.lax.platform_dependent(
        *arrays, cpu=functools.partial(call, True), default=functools.partial(call, False)
    )


def product(left: jax.Array, right: jax.Array, axes: tuple[int, int]) -> jax.Array:
    """Product over one axis of each, accumulated in float32."""
    dimensions = (((axes[0],), (axes[1],)), ((), ()))
    return jax.lax.dot_general(left, right, dimensions, preferred_element_type=jnp.float32)
