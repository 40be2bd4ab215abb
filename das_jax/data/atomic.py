"""Directories that are there complete or not at all, whoever is killed and however many build them."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from das_jax.errors import UserError


@contextmanager
def built_once(directory: Path) -> Iterator[Path | None]:
    """Lets the caller fill a directory that does not exist yet, and renames it when it is full.

    A second process that wants the same directory waits for the first. What a killed process left
    half-made is thrown away.

    Args:
        directory: The directory wanted.

    Yields:
        An empty directory to fill, or None if `directory` is there already.

    Raises:
        UserError: The disk is full or the place cannot be written.
    """
    if directory.exists():
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
        if directory.exists():
            yield None
            return
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        yield unfinished
        unfinished.rename(directory)
    except (OSError, RuntimeError) as error:
        # ArrayRecord's writer has no error number, only the words.
        if os.strerror(errno.ENOSPC) not in str(error):
            raise
        raise UserError(
            f"The disk of {directory.parent} is full: free some space or set data.cache_dir to "
            "another disk."
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        lock.release()
