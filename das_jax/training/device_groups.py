"""Devices in groups of neighbours, so that what a group exchanges stays on links of its own."""

import itertools
import math
from collections.abc import Sequence

import jax
import numpy as np


def device_groups(devices: Sequence[jax.Device], size: int) -> np.ndarray:
    """Groups of `size` devices, [groups, size].

    On a TPU a group is a box of the slice, of those that there are the one on the fewest hosts and then
    with the shortest sides: eight chips of a v5e:8x8 are 2x4 of them, on two hosts and with links along
    both axes, where `jax.make_mesh` takes a row of eight. Elsewhere, and of devices that fill no box,
    those that follow each other are a group, as JAX counts them host by host.

    Args:
      devices: all of them, as `jax.devices()` orders them.
      size: divides their number.
    """
    box = _box(devices)
    if box is None:
        groups = np.empty(len(devices), object)
        groups[:] = devices
        return groups.reshape(-1, size)
    sides = itertools.product(*map(_divisors, box.shape))
    found = {each: _blocks(box, each) for each in sides if math.prod(each) == size}

    def spread(each: tuple[int, ...]) -> tuple[int, int]:
        hosts = {device.process_index for device in found[each][0]}
        return len(hosts), sum(each[:3])  # The cores of a chip are no way apart.

    return found[min(found, key=spread)]


def _box(devices: Sequence[jax.Device]) -> np.ndarray | None:
    """TPU devices where they are, [x, y, z, core], if they fill a box."""
    if devices[0].platform != "tpu":
        return None
    places = np.array([(*device.coords, device.core_on_chip) for device in devices])
    places -= places.min(axis=0)
    shape = places.max(axis=0) + 1
    if math.prod(shape) != len(devices):
        return None
    box = np.empty(shape, object)
    for place, device in zip(places, devices, strict=True):
        box[tuple(place)] = device
    return box


def _divisors(number: int) -> list[int]:
    return [each for each in range(1, number + 1) if number % each == 0]


def _blocks(box: np.ndarray, sides: tuple[int, ...]) -> np.ndarray:
    """The box cut into smaller ones of these sides, [blocks, devices of a block]."""
    cut = [
        part for whole, side in zip(box.shape, sides, strict=True) for part in (whole // side, side)
    ]
    order = (*range(0, len(cut), 2), *range(1, len(cut), 2))
    return box.reshape(cut).transpose(order).reshape(-1, math.prod(sides))
