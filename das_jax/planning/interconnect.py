"""What chips send each other: which operations, among whom, how many bytes, how long on a torus."""

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

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
        total *= len(first_group(instruction, num_devices))
    return total


def first_group(instruction: Instruction, num_devices: int) -> Sequence[int]:
    """The devices that take part together with the first of them, as the program numbers them.

    The compiler writes all groups out, or as an array of numbers that is transposed, or as axes of a mesh.
    """
    if listed := instruction.attribute(r"replica_groups=\{\{([\d,]+)\}"):
        return _numbers(listed)
    iota = re.search(
        r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", instruction.attributes
    )
    if iota:
        devices = np.arange(num_devices).reshape(_numbers(iota[2]))
        order = _numbers(iota[3]) if iota[3] else range(devices.ndim)
        return devices.transpose(order).reshape(_numbers(iota[1]))[0].tolist()
    named = re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", instruction.attributes)
    if named:
        sizes = {axis: int(size) for axis, size in re.findall(r"'([^']+)'=(\d+)", named[1])}
        together = re.findall(r"'([^']+)'", named[2])
        devices = np.arange(num_devices).reshape(tuple(sizes.values()))
        chosen = tuple(slice(None) if axis in together else 0 for axis in sizes)
        return devices[chosen].ravel().tolist()
    return range(num_devices)


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def described(instruction: Instruction, num_devices: int) -> str:
    """The kind of a collective, and among whom it is if not among all."""
    kind, group = kind_of(instruction) or "", first_group(instruction, num_devices)
    if len(group) == num_devices or kind == "collective-permute":
        return kind
    neighbours = group[-1] - group[0] == len(group) - 1
    return (
        f"{kind} in groups of {len(group)}" if neighbours else f"{kind} across {len(group)} groups"
    )


class Side(NamedTuple):
    """Of a group of devices, along an axis of the torus.

    Attributes:
      devices: how many.
      stride: from one to the next; so many groups share a link.
      length: of the axis, where the run is.
    """

    devices: int
    stride: int
    length: int


def seconds(instruction: Instruction, chip: Chip, places: Sequence[tuple[int, ...]]) -> float:
    """Estimated: every axis along which a group lies is used at once, both ways where its links close a ring.

    Args:
      instruction: a collective.
      chip: what the devices are.
      places: the coordinates of each device, as the program numbers them.
    """
    group = first_group(instruction, len(places))
    total = payload(instruction, len(places))
    if len(group) <= 1:
        return 0.0
    if kind_of(instruction) == "collective-permute":
        return total / chip.link_bandwidth + HOP
    sides = _sides([places[device] for device in group], places)
    bandwidth = sum(_bandwidth(side, chip) for side in sides) or chip.hbm_bandwidth
    passes = 2 if kind_of(instruction) == "all-reduce" else 1
    hops = sum(side.devices * side.stride for side in sides)
    return passes * total * (len(group) - 1) / len(group) / bandwidth + HOP * hops


def _sides(group: Sequence[tuple[int, ...]], places: Sequence[tuple[int, ...]]) -> list[Side]:
    """The sides of a group that are longer than a chip; none of the cores of one chip."""
    sides = []
    for here, everywhere in zip(zip(*group, strict=True), zip(*places, strict=True), strict=True):
        along = sorted({*here})
        if len(along) > 1:
            sides.append(Side(len(along), along[1] - along[0], len({*everywhere})))
    return sides


def _bandwidth(side: Side, chip: Chip) -> float:
    """Bytes/s that a group has for itself, one way or, in a ring, both."""
    ring = side.devices * side.stride == side.length >= chip.wrap
    return chip.link_bandwidth / side.stride * (2 if ring else 1)
