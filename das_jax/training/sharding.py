"""Where arrays live: a mesh and a table from logical axes to mesh axes."""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from das_jax.data.batch import Batch
from das_jax.errors import UserError


@dataclass(frozen=True)
class Sharding:
    """A mesh, and the mesh axis of each logical axis.

    Attributes:
      mesh: the devices.
      batch: the mesh axis over which examples are split.
    """

    mesh: Mesh
    batch: str = "data"

    @property
    def num_shards(self) -> int:
        return self.mesh.shape[self.batch]

    def round_up(self, rows: int) -> int:
        """The next number of rows that splits evenly over the devices."""
        return -(-rows // self.num_shards) * self.num_shards

    @property
    def replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def by_example(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec(self.batch))

    def replicate(self, tree: Any) -> Any:
        """Puts a copy of every array on every device."""
        return jax.device_put(tree, self.replicated)

    def shard_batch(self, batch: Batch) -> Batch:
        """Splits this host's rows over its devices; together the hosts' rows are the global batch."""
        return Batch(
            *(jax.make_array_from_process_local_data(self.by_example, np.asarray(x)) for x in batch)
        )


def make_sharding(devices: Literal["all"] | int = "all") -> Sharding:
    """A one-axis mesh over all devices, or the first few.

    Raises:
      UserError: more devices asked for than there are.
    """
    available = jax.devices()
    count = len(available) if devices == "all" else devices
    if count > len(available):
        raise UserError(
            f"mesh.data asks for {count} devices, but there are {len(available)}; "
            "use at most that many, or `all`"
        )
    mesh = jax.make_mesh(
        (count,), ("data",), devices=available[:count], axis_types=(jax.sharding.AxisType.Auto,)
    )
    return Sharding(mesh)


def check_divisible(batch_size: int, sharding: Sharding, key: str) -> None:
    """Raises UserError unless the batch splits evenly over the devices."""
    if batch_size % sharding.num_shards:
        lower = batch_size // sharding.num_shards * sharding.num_shards
        nearest = f"{lower} or {lower + sharding.num_shards}" if lower else str(sharding.num_shards)
        raise UserError(
            f"{key} is {batch_size}, which does not divide by the {sharding.num_shards} devices; "
            f"use {nearest}, or set mesh.data"
        )
