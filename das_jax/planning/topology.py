"""TPU slices by name: what their chips can do, and devices that only the compiler needs to know."""

import importlib.util
import os
from dataclasses import dataclass
from typing import Any

import jax
from jax.experimental import topologies

from das_jax.errors import UserError
from das_jax.hardware import CHIPS, Chip

ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",  # Asks no metadata server what machine this is.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",  # Any that exists; the topology's name decides.
    "TPU_WORKER_HOSTNAMES": "localhost",
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
