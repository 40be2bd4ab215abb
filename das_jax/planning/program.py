"""The programs of a run, ready to be compiled for devices that are not there: nothing is loaded or run."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from das_jax.config.schema import Config
from das_jax.data.batch import Batch
from das_jax.data.masking import Masking
from das_jax.data.objective import HiddenTokens, NextToken, Objective
from das_jax.errors import UserError
from das_jax.methods.contract import Learned, Method
from das_jax.methods.registry import masking_of, method_class
from das_jax.methods.settings.every_method import MethodSettings
from das_jax.model.architecture import Architecture
from das_jax.model.language_model import LanguageModel
from das_jax.planning.recording import UNKNOWN_COUNT, Recorded, RecordingDomain
from das_jax.planning.topology import Topology
from das_jax.training.device_memory import bytes_on_a_device
from das_jax.training.flops import train_step_flops
from das_jax.training.recipe import check_batch_sizes, check_carried, check_recipe, recipe_of
from das_jax.training.sharding import (
    Sharding,
    exchange_dtype,
    sharding_over,
)
from das_jax.training.stages import Stage, Trunk, stages_of
from das_jax.training.step import Recipe, TrainState, compile_train_step, init_state
from das_jax.training.trunk import branches_at, trunk_of
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
class Learning:
    """A stage as it begins, in shapes.

    Attributes:
      name: of its train step.
      stage: the stage.
      recipe: what its steps are made of.
      params: the shapes of the parameters.
      memory: the shapes of what the method carries.
      kept: the rows kept before it; arrays whose numbers mean nothing.
      policies: the shapes of what each policy carries, by its name.
      recorded: what is measured before and after it.
      branches: whether its trunk is kept for the stage after it.
    """

    name: str
    stage: Stage
    recipe: Recipe
    params: Any
    memory: Any
    kept: Mapping[str, np.ndarray]
    policies: dict[str, Any]
    recorded: list[Recorded]
    branches: bool = False


class StageFlops(NamedTuple):
    """Useful FLOPs of a stage.

    Attributes:
      steps: how many it has.
      step: of one of them.
      measured: of all that is measured before and after them.
    """

    steps: int
    step: int
    measured: int

    @property
    def total(self) -> int:
        return self.steps * self.step + self.measured


@dataclass(frozen=True)
class PlannedRun:
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
        check_batch_sizes(self.config, self.sharding, ("training.", "method.", "policies."))
        learned = [*self.learned()]
        if self.config.training.second_moment == "carried":
            check_carried([each.recipe for each in learned])
        by_model: dict[LanguageModel, list[Learning]] = {}
        for each in learned:
            by_model.setdefault(each.recipe.plan.model, []).append(each)
        for alike in reversed(by_model.values()):  # A model that grows is largest in the end.
            train_step = _together([self._train_step(each) for each in alike])
            if alike[-1] is not learned[-1]:
                until = f"{train_step.name} until {alike[-1].stage.name}"
                train_step = dataclasses.replace(train_step, name=until)
            yield train_step
        sums = [wanted for each in learned for wanted in self._sums(each)]
        for name in dict.fromkeys(each.name for each in sums):
            yield _together([each for each in sums if each.name == name])
        for stage in stages_of(self.config):
            if stage.warms_up:
                recipe = self.recipe(stage)
                learning = Learning("warm-up step", stage, recipe, *self.first(recipe), {}, {}, [])
                yield self._train_step(learning)

    @property
    def step_flops(self) -> int:
        """Useful FLOPs of a step of the last domain, over all devices; nothing is traced for it."""
        recipe = self.recipe(stages_of(self.config)[-1])
        return self._flops(recipe)

    def _flops(self, recipe: Recipe) -> int:
        return train_step_flops(recipe, self.config.training.batch_size, self.config.data.length)

    def flops(self) -> list[StageFlops]:
        """Of every stage that learns domains, in order, the passes of their hooks included."""
        return [
            StageFlops(each.stage.steps, self._flops(each.recipe), self._measured(each))
            for each in self.learned()
        ]

    def _measured(self, learning: Learning) -> int:
        length = self.config.data.length
        return sum(each.examples * each.function.flops(length) for each in learning.recorded)

    def learned(self) -> Iterator[Learning]:
        """Every stage that learns domains, from its beginning; what its hooks do is recorded."""
        stages = [stage for stage in stages_of(self.config) if not stage.warms_up]
        params, memory = base, _ = self.first(self.recipe(stages[0]))
        kept: Mapping[str, np.ndarray] = {}
        policies: dict[str, Any] = {}
        for stage, *following in (stages[i : i + 2] for i in range(len(stages))):
            recipe = self.recipe(stage)
            after = (self.recipe(each) for each in following)
            branches = branches_at(recipe, *after) is not None
            length = self.config.data.length
            domain = RecordingDomain(stage, recipe.plan, length, base, self.sharding)
            start = base if recipe.plan.start == "base" else params
            began, policies = domain.begin(recipe, Learned(start, memory, kept), policies)
            recorded = domain.recorded
            learning = Learning("train step", stage, recipe, *began, policies, recorded, branches)
            (params, memory, kept), policies = domain.end(recipe, began, policies)
            yield learning

    def recipe(self, stage: Stage) -> Recipe:
        method = self.method(stage.method_settings)
        counts = dict.fromkeys(stage.domains, UNKNOWN_COUNT)
        return recipe_of(self.config, method, stage, stage.place(counts))

    def first(self, recipe: Recipe) -> tuple[Any, Any]:
        """The shapes of parameters and memory before anything is learned."""

        def first() -> tuple[Any, Any]:
            params = recipe.method.model.init(jax.random.key(0))
            return params, recipe.method.init(params)

        return jax.eval_shape(first)

    def _train_step(self, learning: Learning) -> Program:
        batch_size, recipe = self.config.training.batch_size, learning.recipe
        check_recipe(self.config, recipe, self.sharding)

        def lower() -> jax.stages.Lowered:
            step = compile_train_step(recipe, self.sharding)
            return _jitted(step).lower(self.state(learning), self.stage_batch(learning))

        steps, flops = learning.stage.steps, self._flops(recipe)
        resident = bytes_on_a_device(self._trunk(learning))
        return Program(learning.name, steps, batch_size, flops, resident, lower)

    def _trunk(self, learning: Learning) -> Trunk | None:
        """The shapes and places of what is kept while the stage's branch is trained, if it has one."""
        if not learning.branches:
            return None
        carries = self.config.training.second_moment == "carried"
        trunk = trunk_of(self.state(learning), learning.recipe.plan, carries)
        return self.sharding.shapes("opt_state", trunk)

    def _sums(self, learning: Learning) -> Iterator[Program]:
        length = self.config.data.length
        # The optimizer's state of the domain just learned is not needed, but still there; so is its trunk.
        held = self.state(learning).opt_state, self._trunk(learning)
        resident = bytes_on_a_device(held)
        for wanted in learning.recorded:
            batch_size = min(wanted.batch_size, self.sharding.round_up(wanted.examples))

            def lower(wanted: Recorded = wanted, batch_size: int = batch_size) -> Any:
                params = self.sharding.shapes("params", wanted.params)
                key = self.sharding.shapes("rng", jax.eval_shape(jax.random.key, 0))
                compiled = wanted.compiled(self.sharding)
                return _jitted(compiled).lower(params, self.batch(batch_size), key)

            batches = -(-wanted.examples // batch_size)
            flops = batch_size * wanted.function.flops(length)
            yield Program(wanted.function.name, batches, batch_size, flops, resident, lower)

    def stage_batch(self, learning: Learning) -> Batch:
        """The shapes and places of a batch of a stage."""
        batch = self.batch(self.config.training.batch_size, learning.recipe.accumulate)
        if learning.recipe.plan.kept_rows and learning.kept:
            return batch._replace(extra=self._extra(learning))
        return batch

    def _extra(self, learning: Learning) -> dict[str, jax.Array]:
        """The shapes and places of the kept rows that come beside a batch."""
        micro_batches, rows = learning.recipe.accumulate, learning.recipe.plan.kept_rows
        place = self.sharding.by_row(micro_batches)
        shape = (rows,) if micro_batches == 1 else (micro_batches, rows // micro_batches)

        def some(array: np.ndarray) -> Any:
            return jax.ShapeDtypeStruct((*shape, *array.shape[1:]), array.dtype, sharding=place)

        arrays = {name: some(array) for name, array in learning.kept.items() if name != "key"}
        return {**arrays, "index": some(np.zeros(1, np.uint32))}

    def method(self, settings: MethodSettings | None) -> Method:
        """The method on the model as a TPU runs it."""
        config = self.config
        model = make_model(self.architecture, config, "tpu")
        objective = self._objective(learning=settings is not None)
        return method_class(settings)(model, objective, settings, self.sharding.batch)

    def _objective(self, learning: bool) -> Objective:
        config, architecture = self.config, self.architecture
        if architecture.causal:
            return NextToken(apart=config.data.documents == "apart")
        # Which ids are special, and which continue a word, changes no shape; without the tokenizer these do
        # as well as any.
        masking = Masking(
            mask_token=4,
            special_tokens=(0, 1, 2, 3, 4),
            vocab_size=architecture.vocab_size,
            rate=config.training.mask_rate,
        )
        if learning:
            size = architecture.vocab_size
            masking = masking_of(config.policies, masking, lambda: bytes(size))
        return HiddenTokens(masking, architecture.pad_token_id)

    def state(self, learning: Learning) -> TrainState:
        """The shapes and places of a training state."""
        recipe = learning.recipe

        def state(params: Any, memory: Any, policies: Any) -> TrainState:
            return init_state(recipe, params, memory, jax.random.key(0), 0, policies)

        shapes = jax.eval_shape(state, learning.params, learning.memory, learning.policies)
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
    resident = max(each.resident_bytes for each in programs)  # The last has no trunk beside it.
    runs = sum(each.runs for each in programs)
    return dataclasses.replace(programs[-1], runs=runs, resident_bytes=resident)


def shard_over(topology: Topology, config: Config) -> Sharding:
    """The mesh that a run makes of a topology's devices.

    Raises:
      UserError: the topology has fewer devices than `mesh.data`, or makes no groups of `mesh.parameters`.
    """
    available = topology.devices
    count = len(available) if config.mesh.data == "all" else config.mesh.data
    if count > len(available):
        raise UserError(
            f"mesh.data asks for {count} devices, but {topology.name} has {len(available)}; "
            "use at most that many, or `all`"
        )
    exchange = exchange_dtype(config.mesh.exchange, compute_dtype(config, "tpu"))
    mesh = config.mesh
    return sharding_over(available[:count], mesh.state, exchange, mesh.gather, mesh.parameters)


def _jitted(function: Callable[..., Any]) -> jax.stages.Wrapped:
    """What `jax.jit` returned, under its own type."""
    return cast(jax.stages.Wrapped, function)
