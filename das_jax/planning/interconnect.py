"""What chips send each other: which operations, how many bytes, how long on a torus."""

import math
import re
from collections.abc import Iterator
from typing import Any

from das_jax.hardware import Chip
from das_jax.planning.hlo import Instruction, Module

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "ragged-all-to-all",
)
HOP = 1e-6
"""Seconds that a message needs to the next chip, however short it is."""


def kind_of(instruction: Instruction) -> str | None:
    """The kind of a collective, where it is done or begun; None for all else."""
    kind = instruction.op.removesuffix("-start")
    return kind if kind in KINDS else None


def hidden_in(module: Module, instruction: Instruction) -> Iterator[Instruction]:
    """Collectives that the compiler put into a fusion."""
    for computation in module.called(instruction):
        for inner in computation.values():
            if kind_of(inner):
                yield inner
            elif inner.called:
                yield from hidden_in(module, inner)


def identity(instruction: Instruction) -> tuple[Any, ...]:
    """Equal for the parts of one collective that the compiler spread over several instructions.

    Each part may keep the array in another memory, and all collectives may have one channel.
    """
    channel = instruction.attribute(r"channel_id=(\d+)") or instruction.name
    chain = instruction.attribute(r'chain_id="(\d+)"')
    return channel, chain, *((array.dtype, array.dims) for array in instruction.arrays)


def payload(instruction: Instruction, num_devices: int) -> float:
    """Bytes of the whole array that a collective gathers, sums or scatters."""
    sizes = [array.bytes for array in instruction.arrays]
    if instruction.op.endswith("-start") and instruction.op != "all-reduce-start":
        return max(sizes, default=0)  # The others are what is sent, and flags.
    total = sum(sizes)
    if instruction.op.startswith("reduce-scatter"):
        total *= group_size(instruction, num_devices)
    return total


def group_size(instruction: Instruction, num_devices: int) -> int:
    """How many devices take part together."""
    if listed := instruction.attribute(r"replica_groups=\{\{([\d,]+)\}"):
        return listed.count(",") + 1
    if iota := instruction.attribute(r"replica_groups=\[\d+,(\d+)\]"):
        return int(iota)
    named = re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", instruction.attributes)
    if named:
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", named[1]))
        return math.prod(int(sizes.get(axis, 1)) for axis in re.findall(r"'([^']+)'", named[2]))
    return num_devices


def seconds(instruction: Instruction, chip: Chip, num_devices: int) -> float:
    """Estimated: every axis of the torus is used at once, both ways where its links close a ring."""
    total, devices = payload(instruction, num_devices), group_size(instruction, num_devices)
    if devices <= 1:
        return 0.0
    if kind_of(instruction) == "collective-permute":
        return total / chip.link_bandwidth + HOP
    side = round(devices ** (1 / chip.axes)) or 1
    axes = chip.axes if devices > 2 else 1
    bandwidth = chip.link_bandwidth * axes * (2 if side >= chip.wrap else 1)
    passes = 2 if kind_of(instruction) == "all-reduce" else 1
    return passes * total * (devices - 1) / devices / bandwidth + HOP * side * axes
