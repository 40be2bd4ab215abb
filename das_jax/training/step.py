"""The train step: a pure function, and the one place where jit, donation and shardings are put on it."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.extend.core import Jaxpr, jaxpr_as_fun, jaxprs_in_params
from jax.sharding import PartitionSpec

from das_jax.data.batch import Batch
from das_jax.methods.contract import Memory, Method, Metrics
from das_jax.model.masked_lm import Params
from das_jax.objectives.collectives import global_sum, per_shard
from das_jax.training.exchange import summed_gradients, whole_params
from das_jax.training.optimizer import Optimizer, OptimizerState
from das_jax.training.sharding import Sharding


class TrainState(NamedTuple):
    """All that a step reads and writes.

    Attributes:
      step: steps taken in this domain, [].
      params: the parameters, float32.
      opt_state: fresh in every domain.
      memory: what the method carries from domain to domain.
      rng: the domain's key; an example's random numbers are drawn from it and the example's index.
    """

    step: jax.Array
    params: Params
    opt_state: OptimizerState
    memory: Memory
    rng: jax.Array


EXCHANGES = frozenset(
    (
        *("psum", "psum2", "psum_invariant", "pmean", "pmax", "pmin", "ppermute", "pbroadcast"),
        *("all_gather", "all_gather_invariant", "all_to_all", "ragged_all_to_all"),
        *(
            "reduce_scatter",
            "psum_scatter",
            "unreduced_psum",
            "unreduced_reduce_scatter",
            "axis_index",
        ),
    )
)
"""The primitives that tell a device of others."""

TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
LossAndGradients = tuple[tuple[jax.Array, Metrics], Params]


def init_state(
    method: Method, optimizer: Optimizer, params: Params, memory: Memory, rng: jax.Array
) -> TrainState:
    """The state before a domain's first step."""
    opt_state = optimizer.init(params, method.transforms(memory))
    return TrainState(jnp.zeros((), jnp.int32), params, opt_state, memory, rng)


def places_of(state: TrainState, sharding: Sharding) -> TrainState:
    """Where every array of a state lives."""
    return TrainState(*(sharding.places(*part) for part in state._asdict().items()))


def first_state(
    method: Method,
    optimizer: Optimizer,
    sharding: Sharding,
    params: Params,
    memory: Memory,
    rng: jax.Array,
) -> TrainState:
    """The state before a domain's first step, in its place; no device ever holds more than its part."""

    def init(params: Params, memory: Memory, rng: jax.Array) -> TrainState:
        # The step gives its arguments' memory away, and the caller may hold the same arrays.
        params, memory = jax.tree.map(jnp.copy, (params, memory))
        return init_state(method, optimizer, params, memory, rng)

    arguments = sharding.put("params", params), sharding.put("memory", memory), rng
    places = places_of(jax.eval_shape(init, *arguments), sharding)
    return jax.jit(init, out_shardings=places)(*arguments)


def make_train_step(
    method: Method, optimizer: Optimizer, sharding: Sharding | None = None, accumulate: int = 1
) -> TrainStep:
    """The pure step: loss and gradients, the method's transformations, the optimizer.

    With a sharding, loss and gradients run under `shard_map`, each device on its own rows and with
    parameters of its own; the gradients are added up over the devices once.

    Args:
      method: what is learned.
      optimizer: how.
      sharding: the devices.
      accumulate: the micro-batches, N, whose gradients make one step; the batch is [N, B, ...] if
        there are several.
    """

    def gradients_of(
        params: Params, memory: Memory, batch: Batch, rng: jax.Array
    ) -> LossAndGradients:
        if accumulate > 1:
            return _accumulated(method, params, memory, batch, rng)
        return _loss_and_gradients(method, params, memory, batch, rng)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        loss_and_gradients = gradients_of
        if sharding is not None:
            loss_and_gradients = _sharded(gradients_of, sharding, state.params, accumulate)
        (loss, parts), gradients = loss_and_gradients(state.params, state.memory, batch, state.rng)
        params = state.params
        if sharding is not None:
            # A device updates the parameters whose optimizer state it holds.
            params = jax.lax.with_sharding_constraint(params, sharding.places("opt_state", params))
        params, opt_state, trace = optimizer.update(
            gradients, state.opt_state, params, method.transforms(state.memory), state.step
        )
        metrics = {
            "loss": loss,
            **parts,
            "learning_rate": optimizer.schedule(state.step),
            "gradient_norm": optax.tree.norm(gradients),
            "parameter_norm": optax.tree.norm(params),
            **method.observe(state.memory, trace),
        }
        state = state._replace(step=state.step + 1, params=params, opt_state=opt_state)
        if sharding is not None:
            state = jax.lax.with_sharding_constraint(state, places_of(state, sharding))
            metrics = jax.lax.with_sharding_constraint(metrics, sharding.replicated)
        return state, metrics

    return train_step


def _loss_and_gradients(
    method: Method, params: Params, memory: Memory, batch: Batch, rng: jax.Array
) -> LossAndGradients:
    (loss, parts), gradients = jax.value_and_grad(method.loss, has_aux=True)(
        params, memory, batch, rng
    )
    for name, value in {"loss": loss, **parts}.items():
        if jax.typeof(value).manual_axis_type.varying:
            raise TypeError(
                f"{type(method).__name__}.loss returns a {name!r} that each device knows only of its own "
                "rows; make it the global one with global_sum or global_mean of "
                "das_jax/objectives/collectives.py"
            )
    return (loss, parts), gradients


def _accumulated(
    method: Method, params: Params, memory: Memory, batch_NxB: Batch, rng: jax.Array
) -> LossAndGradients:
    """The mean over micro-batches, one after the other; each counts by the number of its predictions, so
    that the masked-LM loss is the mean over all of them.
    """
    predictions_NxB = method.masking.num_predictions(batch_NxB.tokens)
    predictions_N = global_sum(jnp.sum(predictions_NxB, axis=1), method.axis_name)
    share_N = predictions_N / jnp.maximum(jnp.sum(predictions_N), 1)

    def micro_batch(batch: Batch) -> LossAndGradients:
        return _loss_and_gradients(method, params, memory, batch, rng)

    def add(
        total: LossAndGradients, rows: tuple[Batch, jax.Array]
    ) -> tuple[LossAndGradients, None]:
        batch, share = rows
        return jax.tree.map(lambda t, x: t + share * x, total, micro_batch(batch)), None

    first = jax.tree.map(lambda x: x[0], batch_NxB)
    (loss, parts), gradients = jax.eval_shape(micro_batch, first)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), ((loss, parts), gradients))
    zeros = zeros[0], per_shard(zeros[1], method.axis_name)
    return jax.lax.scan(add, zeros, (batch_NxB, share_N))[0]


def _sharded(
    gradients_of: Callable[..., LossAndGradients],
    sharding: Sharding,
    params: Params,
    accumulate: int,
) -> Callable[..., LossAndGradients]:
    """The same over the mesh: parameters in as they live, sums of gradients out as the optimizer's state
    lives.
    """
    specs, gradient_specs = (sharding.specs(part, params) for part in ("params", "opt_state"))
    everywhere = PartitionSpec()

    def on_one_device(
        params: Params, memory: Memory, batch: Batch, rng: jax.Array
    ) -> LossAndGradients:
        own = whole_params(params, specs, sharding)
        value, gradients = gradients_of(own, memory, batch, rng)
        return value, summed_gradients(gradients, gradient_specs, sharding)

    return jax.shard_map(
        on_one_device,
        mesh=sharding.mesh,
        in_specs=(specs, everywhere, sharding.row_spec(accumulate), everywhere),
        out_specs=(everywhere, gradient_specs),
    )


def compile_train_step(
    method: Method, optimizer: Optimizer, sharding: Sharding, accumulate: int = 1
) -> jax.stages.Wrapped:
    """The step, jitted over the mesh; the old state's memory is reused for the new one."""
    return jax.jit(make_train_step(method, optimizer, sharding, accumulate), donate_argnums=0)


def compile_sums(
    function: Callable[[Params, Batch, jax.Array], Any], sharding: Sharding
) -> jax.stages.Wrapped:
    """The jitted sum over the devices of `function(params, batch, rng)`, each on its own rows.

    Raises:
      TypeError: when it is traced, if the function asks the other devices for anything, as a loss made for
        the mesh does: its sums would depend on how many there are.
    """
    everywhere = PartitionSpec()

    def sums(params: Params, batch: Batch, rng: jax.Array) -> Any:
        specs = sharding.specs("params", params)

        def on_one_device(params: Params, batch: Batch, rng: jax.Array) -> Any:
            own = whole_params(params, specs, sharding)
            return jax.lax.psum(_of_own_rows(function, own, batch, rng), sharding.batch)

        return jax.shard_map(
            on_one_device,
            mesh=sharding.mesh,
            in_specs=(specs, sharding.row_spec(1), everywhere),
            out_specs=everywhere,
        )(params, batch, rng)

    return jax.jit(sums)


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
