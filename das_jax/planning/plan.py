"""A whole run on a topology that need not be there: facts from the compiler, and estimates."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from das_jax.config.schema import Config
from das_jax.planning.architectures import find_architecture
from das_jax.planning.compiled import Compiled, TooLarge, compile_program
from das_jax.planning.estimate import ERRORS, OTHER_ERROR, Estimate, estimate
from das_jax.planning.program import PlannedRun, Program, shard_over
from das_jax.planning.topology import Topology, open_topology
from das_jax.training.sharding import Sharding


@dataclass(frozen=True)
class Phase:
    """A program that was compiled.

    Attributes:
      program: what it is for and how often it runs.
      compiled: what the compiler made of it.
      estimate: what one run costs one device.
      seconds: of one run, estimated: low, mid, high.
    """

    program: Program
    compiled: Compiled
    estimate: Estimate
    seconds: tuple[float, float, float]

    @property
    def peak_bytes(self) -> int:
        """The most HBM that one device needs while it runs."""
        return self.compiled.peak_bytes + self.program.resident_bytes


@dataclass(frozen=True)
class Plan:
    """A run, planned.

    Attributes:
      config: the configuration.
      topology: where it would run.
      num_devices: how many of its devices the run uses.
      phases: the train step first.
    """

    config: Config
    topology: Topology
    num_devices: int
    phases: list[Phase]

    @property
    def error(self) -> float:
        """How far an estimate may be off, as a share of it."""
        return ERRORS.get(self.topology.chip.name, OTHER_ERROR)

    @property
    def hours(self) -> tuple[float, ...]:
        """Of training and importance over the whole run, estimated: low, mid, high."""
        return tuple(
            sum(phase.seconds[i] * phase.program.runs for phase in self.phases) / 3600
            for i in range(3)
        )

    def mfu(self, phase: Phase) -> float:
        """Useful FLOPs over what the devices could do in the estimated time."""
        could = phase.seconds[1] * self.topology.chip.peak * self.num_devices
        return phase.program.flops / could

    def tokens_per_second(self, phase: Phase) -> float:
        """Over all devices, estimated."""
        return phase.program.batch_size * self.config.data.length / phase.seconds[1]

    def as_json(self) -> dict[str, Any]:
        """The train step's figures, then the run's, then those of every phase.

        FLOPs, bytes and collectives are those of one run of the program on one device.
        """
        return {
            "topology": self.topology.name,
            "chips": self.topology.num_chips,
            **self._figures(self.phases[0]),
            "peak_hbm_gib": max(phase.peak_bytes for phase in self.phases) / 2**30,
            "hours": list(self.hours),
            "chip_hours": [hours * self.topology.num_chips for hours in self.hours],
            "basis": self.basis,
            "phases": [
                {"name": phase.program.name, "runs": phase.program.runs, **self._figures(phase)}
                for phase in self.phases
            ],
        }

    def _figures(self, phase: Phase) -> dict[str, Any]:
        cost = phase.estimate
        return {
            "peak_hbm_gib": phase.peak_bytes / 2**30,
            "fits": True,
            "flops_useful": phase.program.flops / self.num_devices,
            "flops_compiled": cost.flops,
            "hbm_bytes": cost.hbm_bytes + cost.prefetched_bytes,
            "collectives": {
                kind: {"count": count, "bytes": cost.collective_bytes[kind]}
                for kind, count in cost.collectives.items()
            },
            "estimated_step_ms": [1000 * seconds for seconds in phase.seconds],
            "estimated_mfu": self.mfu(phase),
            "tokens_per_second": self.tokens_per_second(phase),
            "largest_costs_ms": {part: 1000 * seconds for part, seconds in cost.largest_parts()},
        }

    @property
    def basis(self) -> str:
        """What is a fact, what is an estimate, and how good it is."""
        return (
            "Memory, FLOPs, bytes and collectives are the compiler's. All times, and what is computed from "
            "them (hours, chip-hours, tokens/s, MFU), are estimates from its schedule and were never "
            f"measured: about ±{self.error:.0%}. Compiling, preparing text, held-out losses and "
            "checkpoints are not in the hours."
        )


def plan(config: Config, topology_name: str, log: Callable[[str], None]) -> Plan:
    """Compiles all that a run does for long, for a TPU that need not be there.

    Args:
      config: the configuration.
      topology_name: such as `v5e:2x4`.
      log: shows a sentence; compiling takes minutes.

    Raises:
      UserError: no such topology, no compiler, a model that cannot be found, a program that does not fit.
    """
    topology = open_topology(topology_name)
    sharding = shard_over(topology, config)
    run = PlannedRun(config, find_architecture(config), sharding)
    phases = []
    for program in run.programs():
        log(f"compiling for {topology_name}: {program.name} (this takes minutes)")
        phases.append(_phase(program, topology, sharding))
    return Plan(config, topology, sharding.num_shards, phases)


def _phase(program: Program, topology: Topology, sharding: Sharding) -> Phase:
    compiled = compile_program(program.name, program.lower())
    cost = estimate(compiled.module, topology.chip, sharding.mesh.devices.flat)
    phase = Phase(program, compiled, cost, cost.seconds(topology.chip))
    if phase.peak_bytes > topology.chip.hbm:
        needed, there = (
            f"{size / 2**30:.2f} GiB" for size in (phase.peak_bytes, topology.chip.hbm)
        )
        raise TooLarge(program.name, f"it needs {needed} of HBM, and a device has {there}")
    return phase
