"""Where arrays live: a mesh, a table from logical axes to mesh axes, and what of the state is split."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from das_jax.data.batch import Batch
from das_jax.errors import UserError
from das_jax.hardware import peak_flops
from das_jax.methods.contract import Split
from das_jax.objectives.collectives import Axes
from das_jax.training.device_groups import device_groups

State = Literal["replicated", "optimizer", "parameters"]
Gather = Literal["layer", "step"]

SPLIT: dict[State, tuple[str, ...]] = {
    "replicated": (),
    "optimizer": ("opt_state",),
    "parameters": ("opt_state", "params"),
}
"""The parts of a training state that are split over the devices."""

SMALLEST_SPLIT = 2**14
"""Elements of an array below which a copy everywhere costs less than putting it together."""


@dataclass(frozen=True)
class Sharding:
    """A mesh, the mesh axis of each logical axis, and what lives in parts.

    Attributes:
      mesh: the devices.
      batch: the mesh axes over which examples are split.
      parts: the one of them over which the arrays of a state are split that are; along the others are
        copies.
      state: what of the training state is split: nothing, the optimizer's state (ZeRO-1), or the
        parameters too (FSDP, ZeRO-3).
      exchange: the type in which gradients and split parameters travel; None for their own.
      gather: when split parameters of layers are put together: layer by layer in every pass, or all once a
        step.
    """

    mesh: Mesh
    batch: Axes = "data"
    parts: str = "data"
    state: State = "replicated"
    exchange: Any = None
    gather: Gather = "layer"

    @property
    def num_shards(self) -> int:
        """The devices, each with rows of its own."""
        return self.mesh.size

    @property
    def num_parts(self) -> int:
        """Of an array that is split."""
        return self.mesh.shape[self.parts]

    @property
    def copies(self) -> tuple[str, ...]:
        """The mesh axes along which the parts of a state are the same."""
        return tuple(axis for axis in self.mesh.axis_names if axis != self.parts)

    @property
    def peak_flops(self) -> float | None:
        """bfloat16 FLOP/s of all devices together, None if it is not known."""
        peak = peak_flops(self.mesh.devices.flat[0].device_kind)
        return None if peak is None else peak * self.mesh.size

    def round_up(self, rows: int) -> int:
        """The next number of rows that splits evenly over the devices."""
        return -(-rows // self.num_shards) * self.num_shards

    @property
    def replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def by_example(self) -> NamedSharding:
        return self.by_row(1)

    def by_row(self, micro_batches: int) -> NamedSharding:
        """Of a batch, or of several micro-batches with an axis of their own, [N, B, ...]."""
        return NamedSharding(self.mesh, self.row_spec(micro_batches))

    def row_spec(self, micro_batches: int) -> PartitionSpec:
        return PartitionSpec(*[None] * (micro_batches > 1), self.batch)

    def split_axis(self, shape: tuple[int, ...]) -> int | None:
        """The axis along which an array is split: the largest that divides, None for small arrays.

        By the shape alone, so that a parameter, its gradient and its moments are split alike.
        """
        dividing = [axis for axis, size in enumerate(shape) if size % self.num_parts == 0]
        if math.prod(shape) < SMALLEST_SPLIT or not dividing:
            return None
        return max(dividing, key=lambda axis: shape[axis])

    def specs(self, part: str, tree: Any) -> Any:
        """The partition of every array in a part of the training state, such as `params`."""

        def spec(x: Any) -> Any:
            if isinstance(x, Split):
                return Split(self.specs("opt_state", x.tree), x.whole)
            return self._spec(x.shape) if part in SPLIT[self.state] else PartitionSpec()

        return jax.tree.map(spec, tree, is_leaf=lambda x: isinstance(x, Split))

    def _spec(self, shape: tuple[int, ...]) -> PartitionSpec:
        axis = self.split_axis(shape)
        return PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, self.parts)

    def places(self, part: str, tree: Any) -> Any:
        """Where every array in a part of the training state lives."""
        return jax.tree.map(
            lambda x, spec: NamedSharding(self.mesh, spec), tree, self.specs(part, tree)
        )

    def shapes(self, part: str, tree: Any) -> Any:
        """The same arrays as shapes, types and places."""
        return jax.tree.map(
            lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
            tree,
            self.places(part, tree),
        )

    def put(self, part: str, tree: Any) -> Any:
        """Puts every array of a part of the training state in its place; hosts that give an array of
        their own all give the same.
        """
        return jax.tree.map(_put, tree, self.places(part, tree))

    def replicate(self, tree: Any) -> Any:
        """Puts a copy of every array on every device."""
        return jax.tree.map(lambda x: _put(x, self.replicated), tree)

    def fetch(self, tree: Any) -> Any:
        """Whole arrays on every host; all hosts must ask together."""
        return jax.tree.map(_fetch, tree)

    def fetch_rows(self, tree: Any) -> Any:
        """Arrays with as many rows as a batch, whole on every host, in the order of the hosts that gave them
        to `shard_batch`; the mesh may go from host to host and back. All hosts must ask together.
        """
        hosts = [device.process_index for device in self.mesh.devices.flat]
        order = np.argsort(hosts, kind="stable")

        def rows(x: Any) -> np.ndarray:
            fetched = _fetch(x)
            by_shard = fetched.reshape(self.num_shards, -1, *fetched.shape[1:])
            return by_shard[order].reshape(fetched.shape)

        return jax.tree.map(rows, tree)

    def fetch_whole(self, memory: Any) -> Any:
        """A memory whose arrays are whole on every host, but for its `Split` parts, which stay where they
        live; all hosts must ask together.
        """
        return jax.tree.map(
            lambda x: x if isinstance(x, Split) else _fetch(x),
            memory,
            is_leaf=lambda x: isinstance(x, Split),
        )

    def shard_batch(self, batch: Batch, micro_batches: int = 1) -> Batch:
        """Splits this host's rows over its devices; together the hosts' rows are the global batch.

        Several micro-batches come one after the other and get an axis of their own, [N, B, ...].
        """
        place = self.by_row(micro_batches)

        def put(x: Any) -> jax.Array:
            rows = np.asarray(x)
            if micro_batches > 1:
                rows = rows.reshape(micro_batches, -1, *rows.shape[1:])
            return jax.make_array_from_process_local_data(place, rows)

        return jax.tree.map(put, batch)


def _put(x: Any, place: NamedSharding) -> jax.Array:
    if jax.process_count() == 1 or (isinstance(x, jax.Array) and not x.is_fully_addressable):
        return jax.device_put(x, place)
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_put(jax.random.key_data(x), place))
    # device_put would send the array from host to host to compare it.
    host = np.asarray(x)
    return jax.make_array_from_callback(host.shape, place, host.__getitem__)


def _fetch(x: Any) -> np.ndarray:
    if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
        return multihost_utils.process_allgather(x, tiled=True)
    return np.asarray(x)


def make_sharding(
    devices: Literal["all"] | int = "all",
    state: State = "replicated",
    exchange: Any = None,
    gather: Gather = "layer",
    parameters: Literal["all"] | int = "all",
) -> Sharding:
    """A mesh over all devices, or the first few; see `sharding_over`.

    Raises:
      UserError: more devices asked for than there are, not all that several processes have, or groups that
        they do not make.
    """
    available = jax.devices()
    count = len(available) if devices == "all" else devices
    if count > len(available):
        raise UserError(
            f"mesh.data asks for {count} devices, but there are {len(available)}; "
            "use at most that many, or `all`"
        )
    if count < len(available) and jax.process_count() > 1:
        raise UserError(
            f"mesh.data is {count}, but {jax.process_count()} processes have {len(available)} devices; "
            "several processes use all of theirs: set mesh.data to all"
        )
    return sharding_over(available[:count], state, exchange, gather, parameters)


def sharding_over(
    devices: Sequence[jax.Device],
    state: State,
    exchange: Any,
    gather: Gather = "layer",
    parameters: Literal["all"] | int = "all",
) -> Sharding:
    """A mesh over the devices: of one axis, or of groups of so many, each of which has the whole state.

    One device alone exchanges nothing.

    Raises:
      UserError: they do not make such groups.
    """
    exchange = exchange if len(devices) > 1 else None
    size = len(devices) if parameters == "all" else parameters
    if size == len(devices):
        mesh = jax.make_mesh(
            (len(devices),), ("data",), devices=devices, axis_types=(jax.sharding.AxisType.Auto,)
        )
        return Sharding(mesh, state=state, exchange=exchange, gather=gather)
    if len(devices) % size:
        sizes = [each for each in range(2, len(devices)) if len(devices) % each == 0]
        raise UserError(
            f"mesh.parameters is {size}, but the number of devices, {len(devices)}, does not divide by it; "
            f"use {', '.join([*map(str, sizes)])}{' or ' * bool(sizes)}all"
        )
    axes = ("data", "parameters")
    mesh = Mesh(device_groups(devices, size), axes, axis_types=(jax.sharding.AxisType.Auto,) * 2)
    return Sharding(mesh, axes, "parameters", state, exchange, gather)


def exchange_dtype(setting: str, compute_dtype: Any) -> Any:
    """The type that `mesh.exchange` means."""
    return compute_dtype if setting == "auto" else np.dtype(setting)


def check_divisible(batch_size: int, sharding: Sharding, key: str, micro_batches: int = 1) -> None:
    """Raises UserError unless every micro-batch splits evenly over the devices."""
    unit = sharding.num_shards * micro_batches
    if batch_size % unit:
        lower = batch_size // unit * unit
        nearest = f"{lower} or {lower + unit}" if lower else str(unit)
        parts = f"{sharding.num_shards} devices"
        other = "mesh.data"
        if micro_batches > 1:
            parts += f" x {micro_batches} micro-batches (training.accumulate)"
            other = "training.accumulate or mesh.data"
        raise UserError(
            f"{key} is {batch_size}, which does not divide by the {parts}; use {nearest}, or set {other}"
        )
