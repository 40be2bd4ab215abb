"""The train step: a pure function, and the one place where jit, donation and shardings are put on it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec

from das_jax.continual.method import Memory, Method, Metrics
from das_jax.data.batch import Batch
from das_jax.model.masked_lm import Params
from das_jax.objectives.collectives import per_shard
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


TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def init_state(
    method: Method, optimizer: Optimizer, params: Params, memory: Memory, rng: jax.Array
) -> TrainState:
    """The state before a domain's first step."""
    opt_state = optimizer.init(params, method.transforms(memory))
    return TrainState(jnp.zeros((), jnp.int32), params, opt_state, memory, rng)


def make_train_step(
    method: Method, optimizer: Optimizer, sharding: Sharding | None = None
) -> TrainStep:
    """The pure step. With a sharding, loss and gradients run under `shard_map`, each device on its own rows.

    The gradients of replicated parameters are summed over the devices by `shard_map` itself, once.
    """

    def loss_and_gradients(
        params: Params, memory: Memory, batch: Batch, rng: jax.Array
    ) -> tuple[tuple[jax.Array, Metrics], Params]:
        def loss(params: Params) -> tuple[jax.Array, Metrics]:
            # One copy for all passes: without it every pass would sum its own gradients over the devices.
            own = jax.tree.map(lambda p: per_shard(p, method.axis_name), params)
            return method.loss(own, memory, batch, rng)

        return jax.value_and_grad(loss, has_aux=True)(params)

    if sharding is not None:
        everywhere, by_example = PartitionSpec(), PartitionSpec(sharding.batch)
        loss_and_gradients = jax.shard_map(
            loss_and_gradients,
            mesh=sharding.mesh,
            in_specs=(everywhere, everywhere, by_example, everywhere),
            out_specs=everywhere,
        )

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        (loss, parts), gradients = loss_and_gradients(state.params, state.memory, batch, state.rng)
        params, opt_state, trace = optimizer.update(
            gradients, state.opt_state, state.params, method.transforms(state.memory), state.step
        )
        metrics = {
            "loss": loss,
            **parts,
            "learning_rate": optimizer.schedule(state.step),
            "gradient_norm": optax.tree.norm(gradients),
            "parameter_norm": optax.tree.norm(params),
            **method.observe(state.memory, trace),
        }
        return state._replace(step=state.step + 1, params=params, opt_state=opt_state), metrics

    return train_step


def compile_train_step(
    method: Method, optimizer: Optimizer, sharding: Sharding
) -> jax.stages.Wrapped:
    """The step, jitted over the mesh; the old state's memory is reused for the new one."""
    step = make_train_step(method, optimizer, sharding)
    return jax.jit(step, donate_argnums=0, out_shardings=sharding.replicated)


def compile_sums(
    function: Callable[[Params, Batch, jax.Array], Any], sharding: Sharding
) -> jax.stages.Wrapped:
    """The jitted sum over the devices of `function(params, batch, rng)`, each on its own rows."""
    everywhere, by_example = PartitionSpec(), PartitionSpec(sharding.batch)

    def summed(params: Params, batch: Batch, rng: jax.Array) -> Any:
        return jax.lax.psum(function(params, batch, rng), sharding.batch)

    sharded = jax.shard_map(
        summed,
        mesh=sharding.mesh,
        in_specs=(everywhere, by_example, everywhere),
        out_specs=everywhere,
    )
    return jax.jit(sharded)
