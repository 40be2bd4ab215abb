"""TPU slices by name: what their chips can do, and devices that only the compiler needs to know."""

import importlib.util
import os
from dataclasses import dataclass
from typing import Any

import jax
from jax.experimental import topologies

from das_jax.errors import UserError

FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16")

ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",  # Asks no metadata server what machine this is.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",  # Any that exists; the topology's name decides.
    "TPU_WORKER_HOSTNAMES": "localhost",
}


@dataclass(frozen=True)
class Chip:
    """What the manufacturer publishes of one JAX device: a chip, or half of a `tpu7x`.

    Attributes:
      name: as in a topology's name.
      slices: the shapes that can be rented.
      clock: cycles/s, chosen so that the matrix units reach the published peak.
      peak: bfloat16 FLOP/s.
      hbm_bandwidth: bytes/s.
      hbm: bytes that programs may use.
      link_bandwidth: bytes/s of one link between chips, one way.
      vector_lanes: 32-bit vector operations in a cycle.
      wrap: chips along an axis from which on its links close a ring.
      per_chip: devices on a chip.
      options: what the compiler must be told besides the name.
    """

    name: str
    slices: tuple[str, ...]
    clock: float
    peak: float
    hbm_bandwidth: float
    hbm: float
    link_bandwidth: float
    vector_lanes: int
    wrap: int
    per_chip: int = 1
    options: tuple[tuple[str, str], ...] = ()

    @property
    def axes(self) -> int:
        """Dimensions of the torus."""
        return self.slices[0].count("x") + 1


CHIPS = {
    chip.name: chip
    for chip in (
        Chip(
            "v4",
            CUBES,
            clock=1.05e9,
            peak=275e12,
            hbm_bandwidth=1228e9,
            hbm=30.75 * 2**30,
            link_bandwidth=45e9,
            vector_lanes=8192,
            wrap=4,
            options=(("chip_config_name", "megacore"),),  # One device per chip, not one per core.
        ),
        Chip(
            "v5e",
            FLAT,
            clock=1.5e9,
            peak=197e12,
            hbm_bandwidth=819e9,
            hbm=15.75 * 2**30,
            link_bandwidth=45e9,
            vector_lanes=4096,
            wrap=16,
        ),
        Chip(
            "v5p",
            CUBES,
            clock=1.75e9,
            peak=459e12,
            hbm_bandwidth=2765e9,
            hbm=95.73 * 2**30,
            link_bandwidth=90e9,
            vector_lanes=8192,
            wrap=4,
        ),
        Chip(
            "v6e",
            FLAT,
            clock=1.75e9,
            peak=918e12,
            hbm_bandwidth=1640e9,
            hbm=31.24 * 2**30,
            link_bandwidth=90e9,
            vector_lanes=8192,
            wrap=16,
        ),
        Chip(
            "tpu7x",
            CUBES,
            clock=2.2e9,
            peak=1153e12,
            hbm_bandwidth=3690e9,
            hbm=94.74 * 2**30,
            link_bandwidth=100e9,
            vector_lanes=8192,
            wrap=4,
            per_chip=2,
        ),
    )
}


@dataclass(frozen=True)
class Topology:
    """A slice of TPUs that need not be there.

    Attributes:
      name: such as `v5e:2x4`.
      chip: its chips.
      devices: what a mesh is made of; programs can be compiled for them and not be run.
    """

    name: str
    chip: Chip
    devices: tuple[Any, ...]

    @property
    def num_chips(self) -> int:
        return len(self.devices) // self.chip.per_chip


def open_topology(name: str) -> Topology:
    """The slice of that name, described by the TPU compiler; call it before anything uses a device.

    Raises:
      UserError: no such slice, or the TPU compiler is not installed.
    """
    chip = find_chip(name)
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "the TPU compiler is not installed (it needs no TPU); install it with "
            "pip install 'das-jax[plan]'"
        )
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    # Whatever runs here runs on the CPU; without this JAX would look for a TPU.
    jax.config.update("jax_platforms", "cpu")
    try:
        described = topologies.get_topology_desc(name, "tpu", **dict(chip.options))
    except jax.errors.JaxRuntimeError as error:
        raise UserError(
            f"the installed TPU compiler cannot describe {name} ({error}); "
            "update it with pip install --upgrade 'das-jax[plan]'"
        ) from error
    return Topology(name, chip, tuple(described.devices))


def find_chip(name: str) -> Chip:
    """The chip of a topology's name.

    Raises:
      UserError: no such chip, or no such slice of it.
    """
    generation, _, shape = name.partition(":")
    if generation not in CHIPS:
        existing = ", ".join(f"{chip.name}:{chip.slices[2]}" for chip in CHIPS.values())
        raise UserError(
            f"there is no TPU topology {name!r}; give a chip and a shape, such as {existing}"
        )
    chip = CHIPS[generation]
    if shape not in chip.slices:
        raise UserError(
            f"there is no TPU topology {name!r}; {generation} has {', '.join(chip.slices)}"
        )
    return chip
