"""Which batch size, remat policy and mesh suit a topology: train steps of the model cut short, compiled."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from das_jax.config.schema import Config
from das_jax.model.architecture import Architecture
from das_jax.planning.architectures import find_architecture
from das_jax.planning.compiled import TooLarge, compile_program
from das_jax.planning.estimate import ERRORS, OTHER_ERROR, Estimate, estimate
from das_jax.planning.program import PlannedRun, shard_over
from das_jax.planning.topology import Topology
from das_jax.training.console import Console
from das_jax.training.sharding import SPLIT, State, check_divisible

CUT = (2, 4)
"""Layers of the models that are compiled in place of a deeper one."""

RESOLUTION = 0.15
"""Speeds that differ by less than this share are taken for equal."""

REMATS = ("none", "selective", "full")
STATES: tuple[State, ...] = tuple(SPLIT)
"""The one that needs the most memory first."""

KEYS = {"batch_size": "training.batch_size", "remat": "model.remat", "state": "mesh.state"}
"""Of the settings that are varied."""


@dataclass(frozen=True)
class Candidate:
    """The settings that are varied; all others stay as they are configured.

    Attributes:
      batch_size: examples per step, over all devices.
      remat: what the backward pass recomputes.
      state: what of the training state is split over the devices.
    """

    batch_size: int
    remat: Any
    state: State

    @classmethod
    def of(cls, config: Config) -> "Candidate":
        return cls(config.training.batch_size, config.model.remat, config.mesh.state)

    def applied(self, config: Config) -> Config:
        """The configuration with these settings; what is whole on every device is split in no groups."""
        groups = config.mesh.parameters if SPLIT[self.state] else "all"
        return dataclasses.replace(
            config,
            training=dataclasses.replace(config.training, batch_size=self.batch_size),
            model=dataclasses.replace(config.model, remat=self.remat),
            mesh=dataclasses.replace(config.mesh, state=self.state, parameters=groups),
        )

    def overrides(self, config: Config) -> list[str]:
        """What to add to the command line; nothing for the settings that stay as they are."""
        configured, applied = Candidate.of(config), self.applied(config)
        changed = [
            f"--{key}={getattr(self, name)}"
            for name, key in KEYS.items()
            if getattr(self, name) != getattr(configured, name)
        ]
        groups = applied.mesh.parameters != config.mesh.parameters
        return [*changed, *[f"--mesh.parameters={applied.mesh.parameters}"] * groups]

    def __str__(self) -> str:
        return f"batch size {self.batch_size}, remat {self.remat}, state {self.state}"


@dataclass(frozen=True)
class Step:
    """What a train step costs one device.

    Attributes:
      peak_bytes: the most HBM.
      cost: all else.
    """

    peak_bytes: float
    cost: Estimate


@dataclass(frozen=True)
class Row:
    """A candidate and what became of it.

    Attributes:
      candidate: its settings.
      flops: useful ones of a train step, over all devices.
      step: of the whole model; None if it does not fit even when cut short.
    """

    candidate: Candidate
    flops: int
    step: Step | None


@dataclass(frozen=True)
class Sweep:
    """The candidates for a run, measured on the compiler.

    Attributes:
      config: the configuration that they vary.
      topology: where the run would be.
      num_devices: how many of its devices the run uses.
      num_layers: of the model.
      rows: the candidates.
    """

    config: Config
    topology: Topology
    num_devices: int
    num_layers: int
    rows: Sequence[Row]

    def fits(self, row: Row) -> bool:
        """Whether a device has enough HBM."""
        return row.step is not None and row.step.peak_bytes <= self.topology.chip.hbm

    def seconds(self, step: Step) -> tuple[float, float, float]:
        """Of one train step, estimated: low, mid, high."""
        return step.cost.seconds(self.topology.chip)

    def tokens_per_second(self, row: Row, step: Step) -> float:
        """Over all devices, estimated."""
        return row.candidate.batch_size * self.config.data.length / self.seconds(step)[1]

    def mfu(self, row: Row, step: Step) -> float:
        """Useful FLOPs over what the devices could do in the estimated time."""
        could = self.seconds(step)[1] * self.topology.chip.peak * self.num_devices
        return row.flops / could

    def speed(self, row: Row) -> float:
        """Tokens per second, estimated; 0 for a candidate that does not fit."""
        if row.step is None or not self.fits(row):
            return 0.0
        return self.tokens_per_second(row, row.step)

    @property
    def by_speed(self) -> list[Row]:
        """The fastest first, those that do not fit last."""
        return sorted(self.rows, key=self.speed, reverse=True)

    @property
    def recommended(self) -> Row | None:
        """The best of all candidates."""
        return self._best(self.rows)

    @property
    def recommended_at_batch_size(self) -> Row | None:
        """The best of those with the configured batch size, which leave the training as it is."""
        wanted, best = self.config.training.batch_size, self.recommended
        if best is not None and best.candidate.batch_size == wanted:
            return best
        return self._best([row for row in self.rows if row.candidate.batch_size == wanted])

    def _best(self, rows: Sequence[Row]) -> Row | None:
        """The fastest, as far as an estimate can tell, that asks for the least else.

        Of the rows whose speed is within 15 % (`RESOLUTION`) of the fastest, which the estimates cannot
        tell apart, one with the configured batch size goes before others, then the one that needs less
        memory, counted in tenths of a chip's, then one that is replicated, then the faster.
        """
        fitting = [row for row in rows if self.fits(row)]
        if not fitting:
            return None
        enough = (1 - RESOLUTION) * max(map(self.speed, fitting))
        return min((row for row in fitting if self.speed(row) >= enough), key=self._price)

    def _price(self, row: Row) -> tuple[float, ...]:
        changed = row.candidate.batch_size != self.config.training.batch_size
        peak = row.step.peak_bytes if row.step else math.inf
        tenths = peak * 10 // self.topology.chip.hbm
        return changed, tenths, STATES.index(row.candidate.state), -self.speed(row)

    @property
    def basis(self) -> str:
        """What is a fact, what is an estimate, and how good it is."""
        first, last = CUT
        error = ERRORS.get(self.topology.chip.name, OTHER_ERROR)
        source = (
            f"extrapolated from the compiler's for the model cut to {first} and {last} layers, linearly to "
            f"its {self.num_layers}"
            if len(depths(self.num_layers)) > 1
            else "the compiler's"
        )
        return (
            f"Memory, FLOPs and bytes are {source}. All times, and what is computed from them (tokens/s, "
            "MFU), are estimates from its schedule and were never measured: about "
            f"±{error:.0%}. Only the train step was compiled. The same command without --sweep, with the "
            "settings chosen, compiles the whole run as it is."
        )


def sweep(config: Config, topology: Topology, console: Console) -> Sweep:
    """Compiles the train step of variants of a configuration, in two stages.

    Args:
      config: the configuration.
      topology: where the run would be.
      console: shows progress; compiling takes minutes.

    Raises:
      UserError: a model that cannot be found, or a batch size that the devices cannot split.
    """
    sharding = shard_over(topology, config)
    training, architecture = config.training, find_architecture(config)
    check_divisible(training.batch_size, sharding, "training.batch_size", training.accumulate)
    found = Sweep(config, topology, sharding.num_shards, architecture.num_layers, ())
    each = len(depths(architecture.num_layers))
    console.log(
        "two stages: remat policies and batch sizes; then mesh.state, for the best and for what does not fit"
    )
    for stage in (first_stage, second_stage):
        if not (candidates := stage(found)):
            continue
        title = stage.__name__.replace("_", " ")
        console.log(
            f"{title}: {len(candidates)} candidates, {each * len(candidates)} compilations for "
            f"{topology.name}, each of which may take minutes"
        )
        with console.progress(title, len(candidates)) as line:
            for candidate in line.counting(candidates):
                row = _row(candidate, found, architecture)
                found = dataclasses.replace(found, rows=[*found.rows, row])
                console.log(f"{candidate}: {_outcome(found, row)}")
    return found


def first_stage(sweep: Sweep) -> list[Candidate]:
    """Every remat policy with the configured batch size, half and twice it, as far as the devices can
    split them.
    """
    training = sweep.config.training
    unit = sweep.num_devices * training.accumulate
    half, odd = divmod(training.batch_size, 2)
    sizes = [training.batch_size, *([] if odd else [half]), 2 * training.batch_size]
    return [
        Candidate(size, remat, sweep.config.mesh.state)
        for size in sizes
        if size % unit == 0
        for remat in REMATS
    ]


def second_stage(sweep: Sweep) -> list[Candidate]:
    """The other values of `mesh.state` for the best candidate and, as far as they save memory, for those
    that do not fit.
    """
    if sweep.num_devices == 1:  # One device alone splits nothing.
        return []
    smaller = STATES[STATES.index(sweep.config.mesh.state) + 1 :]
    best = sweep.recommended
    states = {
        row.candidate: STATES if row is best else () if sweep.fits(row) else smaller
        for row in sweep.rows
    }
    return [
        dataclasses.replace(candidate, state=state)
        for candidate in states
        for state in states[candidate]
        if state != candidate.state
    ]


def depths(num_layers: int) -> tuple[int, ...]:
    """The numbers of layers with which a model is compiled: two smaller ones, or its own if it is small."""
    return CUT if num_layers > max(CUT) else (num_layers,)


def train_step(config: Config, architecture: Architecture, topology: Topology) -> Step:
    """Compiles a train step for a topology.

    Raises:
      TooLarge: the compiler finds no way to fit it.
    """
    sharding = shard_over(topology, config)
    program = next(PlannedRun(config, architecture, sharding).programs())
    compiled = compile_program(program.name, program.lower())
    cost = estimate(compiled.module, topology.chip, sharding.mesh.devices.flat)
    return Step(compiled.peak_bytes + program.resident_bytes, cost)


def extrapolate(steps: Mapping[int, Step], num_layers: int) -> Step:
    """The line through the figures of one or two models, by their number of layers, at another number."""
    if num_layers in steps:
        return steps[num_layers]
    few, many = sorted(steps)
    weight = (num_layers - few) / (many - few)
    cost = Estimate()
    cost.add(steps[many].cost, weight)
    cost.add(steps[few].cost, 1 - weight)
    # Deeper models may hide collectives better, but not more than whole.
    cost.exposed = max(0.0, cost.exposed)
    peak = weight * steps[many].peak_bytes + (1 - weight) * steps[few].peak_bytes
    return Step(peak, cost)


def _row(candidate: Candidate, sweep: Sweep, architecture: Architecture) -> Row:
    config = candidate.applied(sweep.config)
    flops = PlannedRun(config, architecture, shard_over(sweep.topology, config)).step_flops
    steps = {}
    try:
        for layers in reversed(depths(architecture.num_layers)):  # The larger may not fit.
            cut = dataclasses.replace(architecture, num_layers=layers)
            steps[layers] = train_step(config, cut, sweep.topology)
    except TooLarge:
        return Row(candidate, flops, None)
    return Row(candidate, flops, extrapolate(steps, architecture.num_layers))


def _outcome(sweep: Sweep, row: Row) -> str:
    if row.step is None:
        return "does not fit"
    peak = f"{row.step.peak_bytes / 2**30:.2f} GiB"
    if not sweep.fits(row):
        return f"does not fit, {peak}"
    return f"{peak}, estimated {1000 * sweep.seconds(row.step)[1]:.3g} ms"
