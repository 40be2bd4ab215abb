"""The programs of a run, ready to be compiled for devices that are not there: nothing is loaded or run."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp

from das_jax.config.load import leaves
from das_jax.config.schema import Config
from das_jax.data.batch import Batch
from das_jax.data.masking import Masking
from das_jax.errors import UserError
from das_jax.methods.contract import Method
from das_jax.methods.registry import method_class
from das_jax.methods.settings import MethodSettings
from das_jax.model.architecture import Architecture
from das_jax.planning.recording import UNKNOWN_COUNT, Recorded, RecordingDomain
from das_jax.planning.topology import Topology
from das_jax.training.flops import train_step_flops
from das_jax.training.recipe import recipe_of
from das_jax.training.sharding import (
    Sharding,
    check_divisible,
    exchange_dtype,
    sharding_over,
)
from das_jax.training.stages import Stage, stages_of
from das_jax.training.step import Recipe, TrainState, compile_sums, compile_train_step, init_state
from das_jax.training.workspace import compute_dtype, make_model


@dataclass(frozen=True)
class Program:
    """What the devices do again and again in one phase of a run.

    Attributes:
      name: of the phase.
      runs: how often it is run in the whole run.
      batch_size: examples of one run, over all devices.
      flops: useful ones of one run, over all devices.
      resident_bytes: what a device holds all the while, besides the program's own arguments.
      lower: gives the program, with the shapes and the places of its arguments.
    """

    name: str
    runs: int
    batch_size: int
    flops: int
    resident_bytes: int
    lower: Callable[[], jax.stages.Lowered]


@dataclass(frozen=True)
class Run:
    """A configuration on devices that need not be there.

    Attributes:
      config: the configuration.
      architecture: of its model.
      sharding: the devices.
    """

    config: Config
    architecture: Architecture
    sharding: Sharding

    def programs(self) -> Iterator[Program]:
        """The domains' train step first, then all else that takes time."""
        repeats = len(self.config.seeds or (self.config.seed,))
        for program in self._programs_of_a_seed():
            yield dataclasses.replace(program, runs=repeats * program.runs)

    def _programs_of_a_seed(self) -> Iterator[Program]:
        for key, value in leaves(self.config).items():
            if key.startswith("method.") and key.endswith(".batch_size"):
                check_divisible(value, self.sharding, key)
        stages = stages_of(self.config)
        learned = [*self._learned([stage for stage in stages if not stage.warms_up])]
        yield _together([train_step for train_step, _ in learned])
        sums = [each for _, several in learned for each in several]
        for name in dict.fromkeys(each.name for each in sums):
            yield _together([each for each in sums if each.name == name])
        for stage in stages:
            if stage.warms_up:
                recipe = self._recipe(stage)
                yield self._train_step("warm-up step", recipe, *self._first(recipe), stage.steps)

    def _learned(self, stages: list[Stage]) -> Iterator[tuple[Program, list[Program]]]:
        """Of every stage that learns domains its train step, and all that its hooks measure."""
        params, memory = base, _ = self._first(self._recipe(stages[0]))
        for stage in stages:
            recipe = self._recipe(stage)
            domain = RecordingDomain(stage, recipe.plan, self.config.data.length, base)
            params, memory = domain.begin(
                recipe, base if recipe.plan.start == "base" else params, memory
            )
            train_step = self._train_step("train step", recipe, params, memory, stage.steps)
            state = self.state(recipe, params, memory)
            params, memory = domain.end(recipe, params, memory)
            # The optimizer's state of the domain just learned is not needed, but still there.
            resident = sum(_bytes_on_a_device(x) for x in jax.tree.leaves(state.opt_state))
            yield train_step, [self._sums(each, resident) for each in domain.recorded]

    def _recipe(self, stage: Stage) -> Recipe:
        method = self.method(stage.method_settings)
        counts = dict.fromkeys(stage.domains, UNKNOWN_COUNT)
        return recipe_of(self.config, method, stage, stage.place(counts))

    def _first(self, recipe: Recipe) -> tuple[Any, Any]:
        """The shapes of parameters and memory before anything is learned."""

        def first() -> tuple[Any, Any]:
            params = recipe.method.model.init(jax.random.key(0))
            return params, recipe.method.init(params)

        return jax.eval_shape(first)

    def _train_step(
        self, name: str, recipe: Recipe, params: Any, memory: Any, steps: int
    ) -> Program:
        batch_size, length = self.config.training.batch_size, self.config.data.length
        micro_batches = self.config.training.accumulate
        check_divisible(batch_size, self.sharding, "training.batch_size", micro_batches)

        def lower() -> jax.stages.Lowered:
            step = compile_train_step(recipe, self.sharding)
            batch = self.batch(batch_size, micro_batches)
            return _jitted(step).lower(self.state(recipe, params, memory), batch)

        flops = train_step_flops(recipe, batch_size, length)
        return Program(name, steps, batch_size, flops, 0, lower)

    def _sums(self, wanted: Recorded, resident: int) -> Program:
        length = self.config.data.length
        batch_size = min(wanted.batch_size, self.sharding.round_up(wanted.examples))

        def lower() -> jax.stages.Lowered:
            sums = compile_sums(wanted.function, self.sharding, wanted.split)
            params = self.sharding.shapes("params", wanted.params)
            key = self.sharding.shapes("rng", jax.eval_shape(jax.random.key, 0))
            return _jitted(sums).lower(params, self.batch(batch_size), key)

        batches = -(-wanted.examples // batch_size)
        flops = batch_size * wanted.function.flops(length)
        return Program(wanted.function.name, batches, batch_size, flops, resident, lower)

    def method(self, settings: MethodSettings) -> Method:
        """The method on the model as a TPU runs it."""
        config = self.config
        model = make_model(self.architecture, config, "tpu")
        # Which ids are special changes no shape; without the tokenizer these do as well as any.
        masking = Masking(
            mask_token=4,
            special_tokens=(0, 1, 2, 3, 4),
            vocab_size=self.architecture.vocab_size,
            rate=config.training.mask_rate,
        )
        return method_class(settings)(model, masking, settings, self.sharding.batch)

    def state(self, recipe: Recipe, params: Any, memory: Any) -> TrainState:
        """The shapes and places of a training state."""

        def state(params: Any, memory: Any) -> TrainState:
            policies = {policy.name: policy.init(params) for policy in recipe.policies}
            return init_state(recipe, params, memory, jax.random.key(0), 0, policies)

        shapes = jax.eval_shape(state, params, memory)
        return TrainState(*(self.sharding.shapes(*part) for part in shapes._asdict().items()))

    def batch(self, rows: int, micro_batches: int = 1) -> Batch:
        """The shapes and places of a batch."""
        place = self.sharding.by_row(micro_batches)
        shape = (rows,) if micro_batches == 1 else (micro_batches, rows // micro_batches)
        tokens = jax.ShapeDtypeStruct((*shape, self.config.data.length), jnp.int32, sharding=place)
        index = jax.ShapeDtypeStruct(shape, jnp.uint32, sharding=place)
        return Batch(tokens, index, jax.ShapeDtypeStruct(shape, jnp.float32, sharding=place))  # type: ignore[arg-type]


def _together(programs: list[Program]) -> Program:
    """One program in place of its likes of several stages, of which the last is the largest."""
    return dataclasses.replace(programs[-1], runs=sum(each.runs for each in programs))


def shard_over(topology: Topology, config: Config) -> Sharding:
    """The mesh that a run makes of a topology's devices.

    Raises:
      UserError: the topology has fewer devices than `mesh.data`.
    """
    available = topology.devices
    count = len(available) if config.mesh.data == "all" else config.mesh.data
    if count > len(available):
        raise UserError(
            f"mesh.data asks for {count} devices, but {topology.name} has {len(available)}; "
            "use at most that many, or `all`"
        )
    exchange = exchange_dtype(config.mesh.exchange, compute_dtype(config, "tpu"))
    return sharding_over(available[:count], config.mesh.state, exchange)


def _jitted(function: Callable[..., Any]) -> jax.stages.Wrapped:
    """What `jax.jit` returned, under its own type."""
    return cast(jax.stages.Wrapped, function)


def _bytes_on_a_device(x: jax.ShapeDtypeStruct) -> int:
    return math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
