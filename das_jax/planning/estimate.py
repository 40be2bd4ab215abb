"""Estimated times of a compiled program, from its text alone: nothing here was ever measured.

Each matrix product takes the cycles that the compiler planned for it, or its HBM traffic at the share
of the bandwidth that streaming reaches, whichever is longer; everything else its HBM traffic or its
vector operations. Collectives count as far as no computation hides them. Left out are dispatch, stalls
of prefetches and congestion.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax

from das_jax.hardware import Chip
from das_jax.model.leaves import ATTENTION, EMBEDDINGS, FEED_FORWARD
from das_jax.planning import interconnect
from das_jax.planning.costs import FREE, Cost, Costs
from das_jax.planning.hlo import Computation, Instruction, Module, root

HBM_SHARE = 0.85
"""Of the HBM bandwidth, reached by a kernel that streams."""

VECTOR_SHARE = 0.6
"""Of the vector units' slots, filled by an elementwise loop."""

PRODUCT_SHARE, KERNEL_SHARE = 0.7, 0.5
"""Of the matrix units' peak, reached by products and kernels for which the compiler plans no cycles: by the
kernels of `flash`, scheduled for a v5e, with heads of 64."""

MAX_OVER_FLOOR = 3
"""Where the compiler plans more cycles than this many times the floor it is known to be too pessimistic."""

ERRORS = {"v5e": 0.3}
"""How far an estimate may be off; `OTHER_ERROR` for other chips."""

OTHER_ERROR = 0.5

PARTS = (
    ("attention", ATTENTION),
    ("feed-forward", FEED_FORWARD),
    ("embeddings", rf"Transformer\)?\)?/{EMBEDDINGS}"),
    ("residuals of the layers", r"Transformer|shard_map/broadcast"),
    ("LM head", r"LMHead"),
    ("masking and losses", r"shard_map"),
)
"""Parts of the step by the path of module names; the first pattern that is found decides."""

OTHER = "optimizer and soft mask"
COLLECTIVES = "collectives, as far as nothing hides them"


@dataclass
class Estimate:
    """The cost of a program on one device; seconds are estimates, all else is the compiler's.

    Attributes:
      flops: of matrix products.
      hbm_bytes: read and written by computations.
      prefetched_bytes: moved between HBM and the memory on the chip while computing.
      floor: seconds that the computations need at the hardware's published peaks.
      busy: seconds of computing.
      exposed: seconds of collectives that no computation hides.
      collectives: how many of each kind, and among whom.
      collective_bytes: of the arrays that they gather, sum or scatter, by kind.
      parts: seconds by part of the step, collectives among them.
    """

    flops: float = 0.0
    hbm_bytes: float = 0.0
    prefetched_bytes: float = 0.0
    floor: float = 0.0
    busy: float = 0.0
    exposed: float = 0.0
    collectives: dict[str, float] = field(default_factory=lambda: defaultdict(int))
    collective_bytes: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    parts: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, other: "Estimate", times: float = 1) -> None:
        """Adds a computation that runs `times` times."""
        for name, value in vars(other).items():
            if isinstance(value, dict):
                for key, count in value.items():
                    getattr(self, name)[key] += count * times
            else:
                setattr(self, name, getattr(self, name) + value * times)

    def largest_parts(self) -> list[tuple[str, float]]:
        """Parts and their seconds, the largest first."""
        return sorted(self.parts.items(), key=lambda part: -part[1])

    def seconds(self, chip: Chip) -> tuple[float, float, float]:
        """The range of the estimate and its middle: low, mid, high."""
        traffic = (self.hbm_bytes + self.prefetched_bytes) / chip.hbm_bandwidth
        mid = max(self.busy, traffic / HBM_SHARE) + self.exposed
        error = ERRORS.get(chip.name, OTHER_ERROR)
        low = max(mid * (1 - error), self.floor, traffic)
        return low, mid, max(mid, low) * (1 + error)


def estimate(module: Module, chip: Chip, devices: Iterable[jax.Device]) -> Estimate:
    """The estimate of one run of a program.

    Args:
      module: the program.
      chip: what it runs on.
      devices: those of its mesh, in order: what they send each other goes over the links between them.
    """
    places = [tuple(device.coords) for device in devices]
    return _Walk(module, chip, places).through(module.computations[module.entry])


class _Walk:
    """One walk through a program in the order in which it runs."""

    def __init__(self, module: Module, chip: Chip, places: Sequence[tuple[int, ...]]) -> None:
        self._module, self._chip, self._places = module, chip, places
        self._costs = Costs(module)
        self._seen: set[tuple[Any, ...]] = set()

    def through(self, computation: Computation) -> Estimate:
        total = Estimate()
        under_way: dict[str, tuple[float, float]] = {}
        for instruction in computation.values():
            if instruction.op.endswith("-done"):
                duration, begun = under_way.pop(instruction.operands[0], (0.0, 0.0))
                self._expose(total, duration - (total.busy - begun))
            elif instruction.op == "while":
                total.add(self._body(instruction), self._module.trips(instruction))
            elif instruction.op == "conditional":
                branches = [self.through(called) for called in self._module.called(instruction)]
                total.add(max(branches, key=lambda branch: branch.busy))
            elif instruction.op in ("call", "async-start"):
                self._call(instruction, total)
            elif instruction.op in ("copy-start", "slice-start"):
                total.prefetched_bytes += max(array.bytes for array in instruction.arrays)
            elif interconnect.kind_of(instruction):
                duration = self._communicate(instruction, total)
                if instruction.op.endswith("-start"):
                    under_way[instruction.name] = (duration, total.busy)
                else:
                    self._expose(total, duration)
            elif instruction.op not in FREE:
                self._compute(instruction, computation, total)
        return total

    def _body(self, loop: Instruction) -> Estimate:
        name = loop.attribute(r"body=%?([\w.\-<>]+)")
        return self.through(self._module.computations[name or ""])

    def _call(self, instruction: Instruction, total: Estimate) -> None:
        for called in self._module.called(instruction):
            result = root(called)
            moves = ("slice", "copy", "dynamic-slice", "dynamic-update-slice", "concatenate")
            if instruction.op == "async-start" and result is not None and result.op in moves:
                total.prefetched_bytes += result.bytes
            else:
                total.add(self.through(called))

    def _communicate(self, instruction: Instruction, total: Estimate) -> float:
        count = len(self._places)
        kind = interconnect.described(instruction, count)
        total.collectives[kind] += 1
        total.collective_bytes[kind] += interconnect.payload(instruction, count)
        return interconnect.seconds(instruction, self._chip, self._places)

    def _expose(self, total: Estimate, duration: float) -> None:
        total.exposed += max(0.0, duration)
        total.parts[COLLECTIVES] += max(0.0, duration)

    def _compute(self, instruction: Instruction, computation: Computation, total: Estimate) -> None:
        cost = self._costs.of(instruction, computation)
        hidden = list(interconnect.hidden_in(self._module, instruction))
        for collective in hidden:
            if (key := interconnect.identity(collective)) in self._seen:
                continue
            self._seen.add(key)
            duration = self._communicate(collective, total)
            if "scatter" in instruction.called[0] and collective.op.startswith("all-reduce"):
                duration /= 2  # Run as a reduce-scatter.
            self._expose(total, duration - cost.flops / self._chip.peak)
        if hidden and cost.flops == 0:
            return
        floor, busy = times(cost, self._chip, is_kernel=instruction.op == "custom-call")
        total.flops += cost.flops
        total.hbm_bytes += cost.hbm_bytes
        total.floor += floor
        total.busy += busy
        total.parts[part_of(instruction)] += busy


def times(cost: Cost, chip: Chip, is_kernel: bool = False) -> tuple[float, float]:
    """Seconds at the published peaks, and estimated seconds."""
    floor = max(cost.flops / chip.peak, cost.hbm_bytes / chip.hbm_bandwidth)
    planned = cost.cycles / chip.clock
    streaming = cost.hbm_bytes / (HBM_SHARE * chip.hbm_bandwidth)
    vector = cost.vector_ops / (chip.vector_lanes * VECTOR_SHARE * chip.clock)
    if not cost.flops:
        compute = min(vector, planned) if planned else vector
    elif not planned:
        share = KERNEL_SHARE if is_kernel else PRODUCT_SHARE
        compute = max(cost.flops / (share * chip.peak), vector)
    elif planned > MAX_OVER_FLOOR * max(floor, vector):
        compute = max(MAX_OVER_FLOOR * floor, vector)
    else:
        compute = planned
    return floor, max(floor, streaming, compute)


def part_of(instruction: Instruction) -> str:
    """The part of the step that an instruction belongs to."""
    for part, pattern in PARTS:
        if re.search(pattern, instruction.source):
            return part
    return OTHER
