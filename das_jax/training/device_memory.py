"""How much memory devices have, how much of it is used, and how much a compiled program needs."""

import math
from collections.abc import Iterable
from typing import Any

import jax

from das_jax.hardware import hbm_bytes


def program_bytes(executable: jax.stages.Compiled) -> int:
    """The most that one device holds while a program runs: its arguments, results, temporaries and code."""
    # A TPU's compiler counts all of them as the peak. A CPU's leaves the temporaries out of it, and a GPU
    # takes all temporaries at once, as one block.
    found: Any = executable.memory_analysis()
    results = found.output_size_in_bytes - found.alias_size_in_bytes
    at_once = found.argument_size_in_bytes + found.temp_size_in_bytes + results
    return max(found.peak_memory_in_bytes, at_once) + found.generated_code_size_in_bytes


def bytes_on_a_device(tree: Any) -> int:
    """Of arrays, or of their shapes and places; what has no place is not there."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves(tree)
        if x.sharding is not None
    )


def bytes_in_use(devices: Iterable[jax.Device]) -> int:
    """Of the fullest of this process's devices, now; 0 where that is not known, as on CPUs."""
    return _most(devices, "bytes_in_use") or 0


def peak_bytes(devices: Iterable[jax.Device]) -> int | None:
    """The most that one of these devices ever held since the process began; None on CPUs."""
    return _most(devices, "peak_bytes_in_use")


def bytes_limit(device: jax.Device) -> int | None:
    """What programs may use: by default three quarters of a GPU; None where that is not known."""
    return _most([device], "bytes_limit") or hbm_bytes(device.device_kind)


def _most(devices: Iterable[jax.Device], name: str) -> int | None:
    found = [(device.memory_stats() or {}).get(name) for device in devices]
    return max((each for each in found if each is not None), default=None)
