"""The programs of a run, ready to be compiled for devices that are not there: nothing is loaded or run."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp

from das_jax.config.schema import Config
from das_jax.data.batch import Batch
from das_jax.data.masking import Masking
from das_jax.errors import UserError
from das_jax.methods.contract import Method
from das_jax.methods.das import importance
from das_jax.methods.das.importance import GateGradientSums, Losses
from das_jax.methods.registry import method_class
from das_jax.methods.settings import DASSettings, MethodSettings, NaiveSettings
from das_jax.model.architecture import Architecture
from das_jax.planning.topology import Topology
from das_jax.training.flops import importance_flops, train_step_flops
from das_jax.training.optimizer import Optimizer, domain_optimizer
from das_jax.training.sharding import (
    Sharding,
    check_divisible,
    exchange_dtype,
    sharding_over,
)
from das_jax.training.step import TrainState, compile_sums, compile_train_step, init_state
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
        settings, domains = self.config.method, self.config.domains
        steps = sum(domain.steps or self.config.training.steps for domain in domains)
        yield self._train_step("train step", settings, steps)
        if isinstance(settings, DASSettings):
            name = "domain importance"
            yield self._importance(name, settings, importance.masked_lm_losses, len(domains))
            if settings.importance.initial is None:
                name = "general importance"
                losses = importance.PROXIES[settings.importance.proxy]
                yield self._importance(name, settings, losses, 1)
        if self.config.general is not None and self.config.general.steps:
            yield self._train_step("warm-up step", NaiveSettings(), self.config.general.steps)

    def _train_step(self, name: str, settings: MethodSettings, steps: int) -> Program:
        batch_size, length = self.config.training.batch_size, self.config.data.length
        micro_batches = self.config.training.accumulate
        check_divisible(batch_size, self.sharding, "training.batch_size", micro_batches)
        method = self.method(settings)

        def lower() -> jax.stages.Lowered:
            step = compile_train_step(method, self._optimizer, self.sharding, micro_batches)
            batch = self.batch(batch_size, micro_batches)
            return _jitted(step).lower(self.state(method), batch)

        flops = train_step_flops(method, batch_size, length)
        return Program(name, steps, batch_size, flops, 0, lower)

    def _importance(self, name: str, settings: DASSettings, losses: Losses, maps: int) -> Program:
        wanted, length = settings.importance, self.config.data.length
        check_divisible(wanted.batch_size, self.sharding, "method.importance.batch_size")
        batch_size = min(wanted.batch_size, self.sharding.round_up(wanted.examples))
        method = self.method(settings)
        state = self.state(method)
        masked = method.masking.num_masked(length)

        def lower() -> jax.stages.Lowered:
            sums = compile_sums(GateGradientSums(method, losses), self.sharding)
            return _jitted(sums).lower(state.params, self.batch(batch_size), state.rng)

        batches = maps * -(-wanted.examples // batch_size)
        flops = importance_flops(self.architecture, losses, batch_size, length, masked)
        # The optimizer's state of the domain just learned is not needed, but still there.
        resident = sum(_bytes_on_a_device(x) for x in jax.tree.leaves(state.opt_state))
        return Program(name, batches, batch_size, flops, resident, lower)

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

    @property
    def _optimizer(self) -> Optimizer:
        return domain_optimizer(self.config.training, self.config.training.steps)

    def state(self, method: Method) -> TrainState:
        """The shapes and places of a training state."""

        def state() -> TrainState:
            key = jax.random.key(0)
            params = method.model.init(key)
            return init_state(method, self._optimizer, params, method.init(params), key)

        shapes = jax.eval_shape(state)
        return TrainState(*(self.sharding.shapes(*part) for part in shapes._asdict().items()))

    def batch(self, rows: int, micro_batches: int = 1) -> Batch:
        """The shapes and places of a batch."""
        place = self.sharding.by_row(micro_batches)
        shape = (rows,) if micro_batches == 1 else (micro_batches, rows // micro_batches)
        tokens = jax.ShapeDtypeStruct((*shape, self.config.data.length), jnp.int32, sharding=place)
        index = jax.ShapeDtypeStruct(shape, jnp.uint32, sharding=place)
        return Batch(tokens, index, jax.ShapeDtypeStruct(shape, jnp.float32, sharding=place))  # type: ignore[arg-type]


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
