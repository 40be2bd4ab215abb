"""Compiled programs on disk, so that no process compiles what an earlier one has."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import jax

from das_jax.data import manifest
from das_jax.errors import UserError
from das_jax.files import write_json


def keep_compiled_programs(directory: Path, log: Callable[[str], object]) -> None:
    """Lets JAX keep all programs: alone it keeps only what took a second or more.

    JAX compiles again what it cannot read, but runs a program in which a bit has changed: the process dies
    or computes something else. So the hashes of the programs are noted, and one that has changed since is
    removed.

    Args:
      directory: of the programs; nothing else is in it.
      log: is told of a program that is removed.
    """
    _remove_changed(directory, log)
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _remove_changed(directory: Path, log: Callable[[str], object]) -> None:
    noted = directory.parent / "manifests" / f"{directory.name}.json"
    try:
        known = dict(json.loads(noted.read_bytes()))
    except (OSError, ValueError, TypeError):
        known = {}  # None yet, or damaged itself: what is there now is noted.
    present = manifest.describe(directory)
    for name in [name for name in present if known.get(name, present[name]) != present[name]]:
        log(f"the compiled program {directory / name} is damaged: it is compiled anew")
        with contextlib.suppress(OSError):
            (directory / name).unlink()
        del present[name]
    if present != known:
        with contextlib.suppress(UserError):  # Somebody else's cache, to be read alone.
            write_json(noted, present)
