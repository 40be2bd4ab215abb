"""Files and directories that are complete or absent, whoever is killed and however many write them."""

import contextlib
import errno
import itertools
import json
import math
import os
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError

from das_jax.errors import UserError

T = TypeVar("T")

TEMPORARY = ".tmp"
"""How the hidden names end under which things are written."""

_LEFT = re.compile(rf"\.(?P<name>.+)\.[0-9a-f]{{32}}(?P<old>\.old)?{re.escape(TEMPORARY)}")
"""The hidden names that `replacing` gives, and nobody else."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path` for a file or directory, which takes its place if all goes
    well.

    A directory takes the place of a directory, never a file.

    Raises:
      UserError: it cannot be written.
    """
    with beside(path) as temporary:
        yield temporary
        give_usual_modes(temporary)
        if path.is_dir() and temporary.is_dir():
            old = temporary.with_suffix(f".old{TEMPORARY}")
            path.rename(old)
            temporary.rename(path)
            shutil.rmtree(old)
        else:
            os.replace(temporary, path)


@contextlib.contextmanager
def beside(path: Path) -> Iterator[Path]:
    """Yields a temporary path for what gets the name of `path` in the end; what did not get it is removed.

    Raises:
      UserError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{TEMPORARY}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
    except (OSError, SafetensorError) as error:
        raise _unwritable(path, error) from error
    finally:
        _remove(temporary)


def give_usual_modes(path: Path) -> None:
    """Lets a file, or a directory with all in it, be read by whom the umask allows.

    safetensors and tempfile make what nobody but its owner can read.
    """
    mask = os.umask(0o077)  # It cannot be read without being set.
    os.umask(mask)
    within = path.rglob("*") if path.is_dir() else ()
    for each in (path, *within):
        with contextlib.suppress(OSError):  # Some file systems have no modes.
            mode = stat.S_IMODE(each.lstat().st_mode)
            usual = (0o777 if each.is_dir() else 0o666) & ~mask
            if not each.is_symlink() and mode | usual != mode:
                each.chmod(mode | usual)


def write_text(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file, whole or not at all.

    Raises:
      UserError: a number in it is not finite, which JSON cannot hold and no result is; or it cannot be
        written.
    """
    try:
        text = json.dumps(value, indent=2, allow_nan=False)
    except ValueError as error:
        raise UserError(
            f"{path} is not written: {_not_finite(value)} is not finite, so something went wrong before"
        ) from error
    write_text(path, text + "\n")


def _not_finite(value: Any, name: str = "") -> str | None:
    """The dotted key of a number that is NaN or infinite."""
    if isinstance(value, float):
        return None if math.isfinite(value) else name.removeprefix(".")
    if isinstance(value, list | tuple):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        return None
    found = (_not_finite(each, f"{name}.{key}") for key, each in value.items())
    return next(filter(None, found), None)


def read_json(path: Path, shape: TypeAdapter[T], remedy: str) -> T:
    """Reads a JSON file that das_jax wrote.

    Args:
      path: the file.
      shape: what it must hold; a number that is not finite is no number.
      remedy: what to do if it is damaged.

    Raises:
      UserError: it is missing, cannot be read, or holds something else.
    """
    try:
        content = path.read_bytes()
        shape.validate_json(content, strict=True)
        return json.loads(content)  # Whole, and not only what the shape speaks of.
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        reason = f"{place}: {first['msg']}" if place else first["msg"]
    except OSError as error:
        reason = error.strerror or str(error)
    except (ValueError, RecursionError) as error:
        reason = str(error)
    raise UserError(f"{path} is damaged ({reason}); {remedy}")


def check_writable(path: Path) -> None:
    """Raises UserError unless a file can be put there; for what takes long before it writes."""
    if path.is_dir():
        raise UserError(f"{path} is a directory; name a file in it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe = path.with_name(
            f".{path.name}.{uuid.uuid4().hex * 2}{TEMPORARY}"
        )  # The longest name used.
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        raise _unwritable(path, error) from error


def sweep(directory: Path, *names: str) -> None:
    """Removes what killed processes left of `replacing` in a directory; nobody else may be writing there.

    Args:
      directory: it alone, and nothing below it.
      names: what was to be written there; without any, whatever it was.
    """
    for left in list(directory.iterdir()) if directory.is_dir() else []:
        found = _LEFT.fullmatch(left.name)
        if found is None or (names and found["name"] not in names):
            continue
        if found["old"] and not (directory / found["name"]).exists():
            left.rename(directory / found["name"])  # Killed before the new took its place.
        else:
            _remove(left)


def _whole(directory: Path) -> None:
    return None


@contextlib.contextmanager
def built_once(
    directory: Path,
    damage: Callable[[Path], str | None] = _whole,
    log: Callable[[str], object] = lambda _: None,
) -> Iterator[Path | None]:
    """Lets the caller fill a directory that does not exist yet, and renames it when it is full.

    A second process that wants the same directory waits for the first. What a killed process left
    half-made is thrown away. A damaged directory stays where it is until there is another to take its
    place, and is kept beside it: whoever reads it finds the same files at the same paths.

    Args:
      directory: the directory wanted, somewhere in data.cache_dir.
      damage: says what is wrong with a directory that is there.
      log: is told when a damaged directory is made anew.

    Yields:
      An empty directory to fill, or None if `directory` is there already, whole.

    Raises:
      UserError: the disk is full or the place cannot be written.
    """
    if directory.exists() and damage(directory) is None:
        yield None
        return
    unfinished = directory.with_name(directory.name + ".unfinished")
    lock = FileLock(directory.with_name(directory.name + ".lock"))
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()  # The operating system frees it when its holder dies.
    except OSError as error:
        raise UserError(
            f"{directory.parent} cannot be written ({error.strerror}): set data.cache_dir to a "
            "directory that can."
        ) from error
    try:
        found = damage(directory) if directory.exists() else None
        if directory.exists() and found is None:
            yield None
            return
        if found is not None:
            log(
                f"{directory} is damaged ({found}): it is made anew, and the damaged one kept beside it"
            )
        shutil.rmtree(unfinished, ignore_errors=True)
        with explaining_full_disk(directory.parent, "set data.cache_dir to another disk"):
            unfinished.mkdir()
            yield unfinished
            if found is not None:
                directory.rename(_unused(directory.with_name(directory.name + ".damaged")))
            unfinished.rename(directory)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        lock.release()


def _unused(path: Path) -> Path:
    names = (path.with_name(f"{path.name}-{number}") for number in itertools.count(2))
    return next(name for name in itertools.chain([path], names) if not name.exists())


@contextlib.contextmanager
def explaining_full_disk(place: Path, remedy: str) -> Iterator[None]:
    """Turns whatever a library says when the disk of `place` is full into a UserError with a remedy."""
    try:
        yield
    except Exception as error:
        # ArrayRecord and Orbax have no error number, only the words.
        if os.strerror(errno.ENOSPC) not in str(error):
            raise
        raise UserError(f"The disk of {place} is full: free some space or {remedy}.") from error


def _unwritable(path: Path, error: Exception) -> UserError:
    reason = getattr(error, "strerror", None) or error
    other_kind = getattr(error, "errno", None) in (errno.EISDIR, errno.ENOTDIR, errno.EEXIST)
    remedy = "move away what is there" if other_kind else "make room there"
    return UserError(f"{path} cannot be written ({reason}); choose another place, or {remedy}")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
