"""Compiled functions of a batch, for what is measured between domains: sums over the devices, or rows."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend.core import Jaxpr, jaxpr_as_fun, jaxprs_in_params
from jax.sharding import PartitionSpec

from das_jax.data.batch import Batch
from das_jax.model.language_model import Params
from das_jax.training.exchange import summed_gradients, whole_params
from das_jax.training.sharding import Sharding

EXCHANGES = frozenset(
    (
        *("psum", "psum2", "psum_invariant", "pmean", "pmax", "pmin", "ppermute", "pbroadcast"),
        *("all_gather", "all_gather_invariant", "all_gather_reduced"),
        *("all_to_all", "ragged_all_to_all", "reduce_scatter", "psum_scatter", "axis_index"),
        *("unreduced_psum", "unreduced_pmax", "unreduced_pmin", "unreduced_reduce_scatter"),
    )
)
"""The primitives that tell a device of others."""


def compile_sums(
    function: Callable[[Params, Batch, jax.Array], Any], sharding: Sharding, split: bool = False
) -> jax.stages.Wrapped:
    """The jitted sum over the devices of `function(params, batch, rng)`, each on its own rows.

    Args:
      function: gives sums over one device's rows.
      sharding: the devices.
      split: leaves the sums in parts, as the optimizer's state lives.

    Raises:
      TypeError: when it is traced, if the function asks the other devices for anything, as a loss made for
        the mesh does: its sums would depend on how many there are.
    """
    everywhere = PartitionSpec()

    def sums(params: Params, batch: Batch, rng: jax.Array) -> Any:
        specs, sum_specs = sharding.specs("params", params), everywhere
        exact = dataclasses.replace(sharding, exchange=None)
        if split:
            shapes = jax.eval_shape(compile_sums(function, sharding), params, batch, rng)
            sum_specs = sharding.specs("opt_state", shapes)

        def on_one_device(params: Params, batch: Batch, rng: jax.Array) -> Any:
            own = whole_params(params, specs, sharding)
            own_sums = _of_own_rows(function, own, batch, rng)
            if split:
                return summed_gradients(own_sums, sum_specs, exact)
            return jax.lax.psum(own_sums, sharding.batch)

        return jax.shard_map(
            on_one_device,
            mesh=sharding.mesh,
            in_specs=(specs, sharding.row_spec(1), everywhere),
            out_specs=sum_specs,
        )(params, batch, rng)

    return jax.jit(sums)


def compile_rows(
    function: Callable[[Params, Batch, jax.Array], Any], sharding: Sharding
) -> jax.stages.Wrapped:
    """The jitted `function(params, batch, rng)`, which gives arrays with one row for each of a device's rows;
    together they are the rows of the global batch, in its order.
    """

    def rows(params: Params, batch: Batch, rng: jax.Array) -> Any:
        specs, by_row = sharding.specs("params", params), sharding.row_spec(1)

        def on_one_device(params: Params, batch: Batch, rng: jax.Array) -> Any:
            return function(whole_params(params, specs, sharding), batch, rng)

        return jax.shard_map(
            on_one_device,
            mesh=sharding.mesh,
            in_specs=(specs, by_row, PartitionSpec()),
            out_specs=by_row,
        )(params, batch, rng)

    return jax.jit(rows)


def _of_own_rows(
    function: Callable[[Params, Batch, jax.Array], Any],
    params: Params,
    batch: Batch,
    rng: jax.Array,
) -> Any:
    """`function(params, batch, rng)`, which must know of no other device."""
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(params, batch, rng)
    name = getattr(function, "__qualname__", type(function).__name__)
    for used in _primitives(closed.jaxpr):
        if used in EXCHANGES:
            raise TypeError(
                f"{name}, which Domain.accumulate sums, exchanges numbers with other devices ({used}), so "
                "its sums would depend on how many there are; give it a loss of its own rows alone, such as "
                "dataclasses.replace(method, axis_name=None).loss or masked_lm_loss_per_example"
            )
    if not all(x.manual_axis_type.varying for x in closed.out_avals):
        raise TypeError(
            f"{name}, which Domain.accumulate sums, returns something that does not depend on its rows, so "
            "every device would count it once more; return sums over the rows, weighted by batch.weight"
        )
    leaves = jaxpr_as_fun(closed)(*jax.tree.leaves((params, batch, rng)))
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


def _primitives(jaxpr: Jaxpr) -> Iterator[str]:
    """The names of all primitives of a program."""
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for inner in jaxprs_in_params(equation.params):
            yield from _primitives(inner)
