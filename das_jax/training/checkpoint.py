"""Checkpoints: complete or absent, and checked against damage when they are read. The one file that
knows Orbax.
"""

import functools
import logging
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from das_jax.errors import UserError
from das_jax.model.units import parameter_paths
from das_jax.training.distributed import on_every_host, on_first_host
from das_jax.training.sharding import Sharding

KEEP = 2
"""Checkpoints kept per stage: the last, and the one before in case the last is damaged."""


class Restored(NamedTuple):
    """A checkpoint that was read and found whole."""

    step: int
    state: Any
    info: dict[str, Any]


class DamagedError(Exception):
    """A checkpoint is not what was saved; the text says how that shows."""


class Checkpoints:
    """The checkpoints of one stage, by step; a state is a dict, and parts of it may be read alone.

    Orbax writes into a temporary directory and renames it, so a killed save leaves nothing. Every
    array's fingerprint is saved beside it and compared when it is read: bytes that changed on the disk
    are noticed. Used in a `with` statement, whose end waits for what is being saved.
    """

    def __init__(
        self,
        directory: Path,
        sharding: Sharding,
        log: Callable[[str], None],
        read_only: bool = False,
    ) -> None:
        _say_it_once()
        _write_small_arrays_whole()
        self.directory = directory.absolute()
        self.sharding = sharding
        self.log = log
        self.read_only = read_only
        options = ocp.CheckpointManagerOptions(
            max_to_keep=None if read_only else KEEP,
            create=not read_only,
            cleanup_tmp_directories=not read_only,
            read_only=read_only,
        )
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._manager.close()

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, ascending."""
        return on_first_host(lambda: sorted(self._manager.all_steps()))

    def save(self, step: int, state: Any, info: dict[str, Any]) -> None:
        """Saves in the background; an earlier save is finished first."""
        info = {**info, "shapes": shapes_of(state), "fingerprints": fingerprints(state)}
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), info=ocp.args.JsonSave(info))
        self._manager.save(step, args=items, force=True)

    def wait(self) -> None:
        """Returns when everything is on the disk."""
        self._manager.wait_until_finished()

    def restore_latest(self, like: Callable[[dict[str, Any]], Any]) -> Restored | None:
        """The newest checkpoint that is whole, or None; damaged ones are reported and put aside.

        Args:
          like: from a checkpoint's info, which says the shapes of all it holds, the shapes and types of the
            part that is wanted, and the places of what is not to be everywhere; NumPy arrays are read to
            the host. It may be split otherwise than it was saved.
        """
        for step in reversed(self.steps()):
            try:
                return self.restore(step, like)
            except DamagedError as error:
                self.log(f"warning: {error}; it is not used")
                self._put_aside(step)
        return None

    def restore(self, step: int, like: Callable[[dict[str, Any]], Any]) -> Restored:
        """One checkpoint.

        Raises:
          DamagedError: it is not whole.
          UserError: it was written by an earlier version.
        """
        restored, reason, cause = None, "another host could not read it", None
        try:
            restored = self._restore(step, like)
        except UserError:
            raise
        except Exception as error:  # Damaged bytes raise anything.
            reason, cause = (str(error).strip() or repr(error)).splitlines()[0][:160], error
        # A host reads its own part, and what one cannot read all must pass over.
        if on_every_host(restored is not None) and restored is not None:
            return restored
        raise DamagedError(
            f"the checkpoint {self.directory / str(step)} is damaged ({reason})"
        ) from cause

    def _restore(self, step: int, like: Callable[[dict[str, Any]], Any]) -> Restored:
        items = ocp.args.Composite(info=ocp.args.JsonRestore())
        info = self._manager.restore(step, args=items)["info"]
        shapes = jax.tree.map(self._placed, like(info)) if "shapes" in info else None
        if shapes is None or not {*parameter_paths(shapes)} <= _paths(info):
            raise UserError(
                f"the checkpoint {self.directory / str(step)} was written by an earlier version of das_jax, "
                "from which this one cannot go on; use that version, or give a new --output_dir"
            )
        items = ocp.args.Composite(
            state=ocp.args.PyTreeRestore(
                shapes,
                partial_restore=True,
                restore_args=ocp.checkpoint_utils.construct_restore_args(shapes),
            )
        )
        state = self._manager.restore(step, args=items)["state"]
        for path, fingerprint in fingerprints(state).items():
            if fingerprint != info["fingerprints"][path]:
                raise ValueError(f"{path} is not what was saved")
        return Restored(step, state, info)

    def _placed(self, x: Any) -> Any:
        """Where an array is to be read to: everywhere if nothing is said, on the host if it is one there."""
        if isinstance(x, np.ndarray):
            return x
        return jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=x.sharding or self.sharding.replicated
        )

    def _put_aside(self, step: int) -> None:
        """Out of the way of what will be saved again, but for a person to look at."""

        def move() -> None:
            aside = self.directory / f"{step}.damaged"
            shutil.rmtree(aside, ignore_errors=True)
            (self.directory / str(step)).rename(aside)

        if not self.read_only:
            on_first_host(move)


def shapes_of(state: Any) -> Any:
    """What a checkpoint says of its arrays: {part: {path: [shape, type]}}."""
    return {
        part: {
            path: [[*x.shape], np.dtype(x.dtype).name]
            for path, x in zip(parameter_paths(tree), jax.tree.leaves(tree), strict=True)
        }
        for part, tree in state.items()
    }


def _paths(info: dict[str, Any]) -> set[str]:
    """Of all arrays that a checkpoint holds. It says them twice: damage to one leaves the other."""
    parts = info["shapes"].items()
    by_part = (f"{part}/{path}".rstrip("/") for part, paths in parts for path in paths)
    return {*by_part, *info["fingerprints"]}


def _say_it_once() -> None:
    """Keeps Orbax and TensorStore from printing, beside it, what they raise or what follows from it."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    shown = sys.unraisablehook
    if getattr(shown, "__module__", None) == __name__:
        return

    def hook(unraisable: Any) -> None:
        # What TensorStore's threads still finish after another read or write has failed.
        error = unraisable.exc_value
        if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
            shown(unraisable)

    sys.unraisablehook = hook


@functools.cache
def _write_small_arrays_whole() -> None:
    """Where devices hold the same, Orbax has each write a part of every array, and small ones take longer to
    cut than to write.
    """
    ocp.type_handlers.register_type_handler(
        jax.Array,
        ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=1 << 20),
        override=True,
    )


@jax.jit
def _fingerprints(leaves: list[jax.Array]) -> list[jax.Array]:
    def fingerprint(x: jax.Array) -> jax.Array:
        x = x.astype(jnp.uint8) if x.dtype == bool else x
        bits = jax.lax.bitcast_convert_type(x, f"uint{min(8 * x.dtype.itemsize, 32)}")
        # Every element's place in the flat array, without flattening it: it may be split.
        place = jnp.zeros(bits.shape, jnp.uint32)
        for axis, size in enumerate(bits.shape):
            place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(
                jnp.uint32, bits.shape, axis
            )
        weights = place * jnp.uint32(2654435761)
        # An odd weight loses no bit of what it multiplies.
        return jnp.sum(bits.astype(jnp.uint32) * (weights | jnp.uint32(1)), dtype=jnp.uint32)

    return [fingerprint(x) for x in leaves]


def fingerprints(tree: Any) -> dict[str, int]:
    """By path: a position-weighted sum of the array's bits, modulo 2^32.

    Any one element that changes changes it. Computed where the array lives, and the same whatever its
    sharding.
    """
    leaves = [
        # JAX would cut 64 bits short.
        x.view(np.uint32) if isinstance(x, np.ndarray) and x.dtype.itemsize == 8 else x
        for x in jax.tree.leaves(tree)
    ]
    sums = jax.device_get(_fingerprints(leaves))
    return {path: int(x) for path, x in zip(parameter_paths(tree), sums, strict=True)}
