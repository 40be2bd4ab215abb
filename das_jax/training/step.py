"""The train step: a pure function, and the one place where jit, donation and shardings are put on it."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec

from das_jax.data.batch import Batch
from das_jax.methods.contract import (
    Cost,
    Memory,
    Method,
    Metrics,
    Moment,
    Plan,
    SecondMoment,
    Transforms,
)
from das_jax.methods.net import Net
from das_jax.methods.partition import merged, partition
from das_jax.methods.policy import GradientsAt, LossAndGradients, Policy
from das_jax.model.language_model import LanguageModel, Params
from das_jax.objectives.collectives import global_sum, per_shard
from das_jax.training.exchange import (
    net_of_parts,
    summed_but_layers,
    whole_but_layers,
    whole_memory,
)
from das_jax.training.optimizer import Optimizer, OptimizerState
from das_jax.training.sharding import Sharding


class TrainState(NamedTuple):
    """All that a step reads and writes.

    Attributes:
      step: steps taken in this stage, [].
      params: the parameters, float32.
      opt_state: of those that are trained.
      memory: what the method carries from stage to stage.
      rng: the stage's key; an example's random numbers are drawn from it and the example's index.
      domain: the number of the domain that is learned, from 0, [].
      policies: what each policy carries, by its name.
    """

    step: jax.Array
    params: Params
    opt_state: OptimizerState
    memory: Memory
    rng: jax.Array
    domain: jax.Array
    policies: dict[str, Memory]


TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
Bind = Callable[[LanguageModel, Params], Net]


@dataclass(frozen=True)
class Recipe:
    """What a step is made of. Equal ones make the same program.

    Attributes:
      method: what is minimised.
      plan: what is trained.
      optimizer: how.
      steps: of the stage.
      policies: what changes a method's step.
      accumulate: the micro-batches, N, whose gradients make one step; the batch is [N, B, ...] if there
        are several.
    """

    method: Method
    plan: Plan
    optimizer: Optimizer
    steps: int = 1
    policies: tuple[Policy, ...] = ()
    accumulate: int = 1

    @property
    def recovery(self) -> int:
        """The first steps of the stage, which read kept rows in the place of new text."""
        return round(self.plan.recovery * self.steps)

    def cost(self) -> Cost:
        """What a step does with an example."""
        cost = self.method.cost() if self.plan.cost is None else self.plan.cost
        for policy in self.policies:
            cost = policy.cost(cost)
        return cost

    def gradients(self, at: GradientsAt, trained: Params, step: jax.Array) -> LossAndGradients:
        """What a step goes by, as the policies say."""
        for policy in self.policies:
            at = partial(policy.gradients, at, step=step)
        return at(trained)

    def moment(self, state: TrainState) -> Moment:
        """Where in the run a step is, and what the policies say of it."""
        weighs = [policy.weigh(state.policies[policy.name]) for policy in self.policies]
        weigh = next((each for each in weighs if each is not None), None)
        return Moment(state.domain, state.step, self.steps, state.rng, weigh)

    def transforms(self, state: TrainState) -> Transforms:
        """The method's, with the policies' decay."""
        own = self.method.transforms(state.memory, self.moment(state))
        decays = [policy.decay(state.policies[policy.name], self.plan) for policy in self.policies]
        found = [each for each in decays if each is not None]
        return own._replace(decay=optax.chain(own.decay, *found)) if found else own

    def after_step(self, state: TrainState, trained: Params) -> dict[str, Memory]:
        """What each policy carries once the trained parameters have moved."""
        moment = self.moment(state)
        return {
            policy.name: policy.after_step(state.policies[policy.name], trained, self.plan, moment)
            for policy in self.policies
        }


def recipe(method: Method, optimizer: Optimizer, **others: Any) -> Recipe:
    """A recipe of a method on its own, which trains every parameter of its model."""
    return Recipe(method, Plan(method.model), optimizer, **others)


def init_state(
    recipe: Recipe,
    params: Params,
    memory: Memory,
    rng: jax.Array,
    domain: int = 0,
    policies: dict[str, Memory] | None = None,
    second_moment: SecondMoment | None = None,
) -> TrainState:
    """The state before a stage's first step; with the second moment of the stage before, if it is carried."""
    zero = jnp.zeros((), jnp.int32)
    state = TrainState(zero, params, (), memory, rng, zero + domain, policies or {})  # type: ignore[arg-type]
    trained, _ = partition(params, recipe.plan.trains)
    opt_state = recipe.optimizer.init(trained, recipe.transforms(state), second_moment)
    return state._replace(opt_state=opt_state)


def places_of(state: TrainState, sharding: Sharding) -> TrainState:
    """Where every array of a state lives."""
    return TrainState(*(sharding.places(*part) for part in state._asdict().items()))


def first_state(
    recipe: Recipe,
    sharding: Sharding,
    params: Params,
    memory: Memory,
    rng: jax.Array,
    domain: int = 0,
    policies: dict[str, Memory] | None = None,
    second_moment: SecondMoment | None = None,
) -> TrainState:
    """The state before a stage's first step, in its place; no device ever holds more than its part."""

    def init(*arguments: Any) -> TrainState:
        # The step gives its arguments' memory away, and the caller may hold the same arrays.
        params, memory, rng, policies, second_moment = jax.tree.map(jnp.copy, arguments)
        return init_state(recipe, params, memory, rng, domain, policies, second_moment)

    arguments = (
        sharding.put("params", params),
        sharding.put("memory", memory),
        rng,
        sharding.put("policies", policies or {}),
        sharding.put("opt_state", second_moment),
    )
    places = places_of(jax.eval_shape(init, *arguments), sharding)
    return jax.jit(init, out_shardings=places)(*arguments)


def make_train_step(recipe: Recipe, sharding: Sharding | None = None) -> TrainStep:
    """The pure step: loss and gradients, the method's transformations, the optimizer.

    With a sharding, loss and gradients run under `shard_map`, each device on its own rows and with
    parameters of its own; the gradients are added up over the devices once.
    """
    method, plan, optimizer = recipe.method, recipe.plan, recipe.optimizer

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        trained, frozen = partition(state.params, plan.trains)

        def at(trained: Params) -> LossAndGradients:
            there = state._replace(params=merged(trained, frozen))
            if sharding is None:
                return loss_and_gradients(recipe, there, batch)
            return _sharded(recipe, sharding, there)(there, batch)

        (loss, parts), gradients = recipe.gradients(at, trained, state.step)
        if sharding is not None:
            # A device updates the parameters whose optimizer state it holds.
            trained = jax.lax.with_sharding_constraint(
                trained, sharding.places("opt_state", trained)
            )
        trained, opt_state, trace = optimizer.update(
            gradients, state.opt_state, trained, recipe.transforms(state), state.step
        )
        params = merged(trained, frozen)
        metrics = {
            "loss": loss,
            **parts,
            "learning_rate": optimizer.schedule(state.step),
            "gradient_norm": optax.tree.norm(gradients),
            "parameter_norm": optax.tree.norm(params),
            **method.observe(state.memory, trace),
        }
        state = state._replace(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            policies=recipe.after_step(state, trained),
        )
        if sharding is not None:
            state = jax.lax.with_sharding_constraint(state, places_of(state, sharding))
            metrics = jax.lax.with_sharding_constraint(metrics, sharding.replicated)
        return state, metrics

    return train_step


def loss_and_gradients(
    recipe: Recipe, state: TrainState, batch: Batch, bind: Bind = Net
) -> LossAndGradients:
    """Of the trained parameters; the mean over micro-batches, if there are several.

    Args:
      recipe: what the step is made of.
      state: with this device's parameters.
      batch: this device's rows.
      bind: makes a net of the plan's model and the parameters.
    """
    if recipe.accumulate > 1:
        return _accumulated(recipe, state, batch, bind)
    method, moment = recipe.method, recipe.moment(state)
    trained, frozen = partition(state.params, recipe.plan.trains)

    def loss_of(trained: Params) -> tuple[jax.Array, Metrics]:
        net = bind(recipe.plan.model, merged(trained, frozen))
        return method.loss(net, state.memory, batch, moment)

    (loss, parts), gradients = jax.value_and_grad(loss_of, has_aux=True)(trained)
    for name, value in {"loss": loss, **parts}.items():
        if jax.typeof(value).manual_axis_type.varying:
            raise TypeError(
                f"{type(method).__name__}.loss returns a {name!r} that each device knows only of its own "
                "rows; make it the global one with global_sum or global_mean of "
                "das_jax/objectives/collectives.py"
            )
    return (loss, parts), gradients


def _accumulated(
    recipe: Recipe, state: TrainState, batch_NxB: Batch, bind: Bind
) -> LossAndGradients:
    """The mean over micro-batches, one after the other; each counts by the number of its predictions, so
    that the LM loss is the mean over all of them.
    """
    method, one = recipe.method, dataclasses.replace(recipe, accumulate=1)
    predictions_NxB = method.objective.num_predictions(batch_NxB.tokens)
    predictions_N = global_sum(jnp.sum(predictions_NxB, axis=1), method.axis_name)
    share_N = predictions_N / jnp.maximum(jnp.sum(predictions_N), 1)

    def micro_batch(batch: Batch) -> LossAndGradients:
        return loss_and_gradients(one, state, batch, bind)

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
    recipe: Recipe, sharding: Sharding, state: TrainState
) -> Callable[[TrainState, Batch], LossAndGradients]:
    """The same over the mesh: parameters in as they live, sums of gradients out as the optimizer's state
    lives.
    """
    # The optimizer's state has no part in the loss.
    specs = TrainState(
        *(sharding.specs(*part) for part in state._replace(opt_state=())._asdict().items())  # type: ignore[arg-type]
    )
    trained, _ = partition(state.params, recipe.plan.trains)
    trained_specs, _ = partition(specs.params, recipe.plan.trains)
    gradient_specs = sharding.specs("opt_state", trained)
    everywhere = PartitionSpec()

    def on_one_device(state: TrainState, batch: Batch) -> LossAndGradients:
        state = state._replace(
            params=whole_but_layers(state.params, specs.params, sharding),
            memory=whole_memory(state.memory, specs.memory, sharding),
            policies=whole_memory(state.policies, specs.policies, sharding),
        )
        bind = partial(net_of_parts, specs=specs.params, sharding=sharding)
        value, gradients = loss_and_gradients(recipe, state, batch, bind)
        return value, summed_but_layers(gradients, gradient_specs, trained_specs, sharding)

    mapped = jax.shard_map(
        on_one_device,
        mesh=sharding.mesh,
        in_specs=(specs, sharding.row_spec(recipe.accumulate)),
        out_specs=(everywhere, gradient_specs),
    )
    return lambda state, batch: mapped(state._replace(opt_state=()), batch)  # type: ignore[arg-type]


def compile_train_step(recipe: Recipe, sharding: Sharding) -> jax.stages.Wrapped:
    """The step, jitted over the mesh; the old state's memory is reused for the new one."""
    return jax.jit(make_train_step(recipe, sharding), donate_argnums=0)
