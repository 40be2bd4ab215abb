"""Checkpoints: complete or absent, and checked against damage when they are read. The one file that
knows Orbax.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from das_jax.model.units import parameter_paths
from das_jax.training.sharding import Sharding

KEEP = 2
"""Checkpoints kept per stage: the last, and the one before in case the last is damaged."""


class Restored(NamedTuple):
    """A checkpoint that was read and found whole."""

    state: Any
    info: dict[str, Any]


class Checkpoints:
    """The checkpoints of one stage, by step; a state is a dict, and parts of it may be read alone.

    Orbax writes into a temporary directory and renames it, so a killed save leaves nothing. Every
    array's fingerprint is
    saved beside it and compared when it is read: bytes that changed on the disk are noticed.
    """

    def __init__(self, directory: Path, sharding: Sharding, log: Callable[[str], None]) -> None:
        logging.getLogger("absl").setLevel(logging.ERROR)
        self.directory = directory.absolute()
        self.sharding = sharding
        self.log = log
        options = ocp.CheckpointManagerOptions(
            max_to_keep=KEEP, create=True, enable_async_checkpointing=True
        )
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, info: dict[str, Any]) -> None:
        """Saves in the background; an earlier save is finished first. A step that is already there is
        replaced.
        """
        if step in self.steps():
            self._manager.delete(step)
        info = {**info, "fingerprints": fingerprints(state)}
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), info=ocp.args.JsonSave(info))
        self._manager.save(step, args=items, force=True)

    def wait(self) -> None:
        """Returns when everything is on the disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()

    def restore_latest(self, like: Callable[[dict[str, Any]], Any]) -> Restored | None:
        """The newest checkpoint that is whole, or None; damaged ones are reported and passed over.

        Args:
          like: from a checkpoint's info, the shapes and types of the part of its state that is wanted.
        """
        for step in reversed(self.steps()):
            try:
                return self.restore(step, like)
            except Exception as error:  # whatever way the bytes were damaged in
                reason = (
                    str(error).strip().splitlines()[0][:200] if str(error).strip() else repr(error)
                )
                self.log(
                    f"warning: checkpoint {self.directory / str(step)} is damaged and not used ({reason}); "
                    "the one before it is"
                )
        return None

    def restore(self, step: int, like: Callable[[dict[str, Any]], Any]) -> Restored:
        """One checkpoint; raises ValueError, or whatever Orbax raises, if it is damaged."""
        info = self._manager.restore(step, args=ocp.args.Composite(info=ocp.args.JsonRestore()))[
            "info"
        ]
        sharding = self.sharding.replicated
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), like(info)
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
        return Restored(state, info)


@jax.jit
def _fingerprints(leaves: list[jax.Array]) -> list[jax.Array]:
    def fingerprint(x: jax.Array) -> jax.Array:
        x = x.astype(jnp.uint8) if x.dtype == bool else x
        bits = jax.lax.bitcast_convert_type(x, f"uint{min(8 * x.dtype.itemsize, 32)}").reshape(-1)
        weights = jax.lax.iota(jnp.uint32, bits.size) * jnp.uint32(2654435761) + jnp.uint32(1)
        return jnp.sum(bits.astype(jnp.uint32) * (weights | jnp.uint32(1)), dtype=jnp.uint32)

    return [fingerprint(x) for x in leaves]


def fingerprints(tree: Any) -> dict[str, int]:
    """By path: a position-weighted sum of the array's bits, modulo 2^32.

    Computed where the array lives, and the same whatever its sharding.
    """
    sums = jax.device_get(_fingerprints(jax.tree.leaves(tree)))
    return {path: int(x) for path, x in zip(parameter_paths(tree), sums, strict=True)}
