"""What is written where somebody says, with --output or --json: it never takes the place of what is there."""

import contextlib
import errno
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from das_jax.errors import UserError
from das_jax.files import beside, check_writable, give_usual_modes

Ours = Callable[[Path], bool]
"""Whether a file is provably of the kind that is to be written there, so that a newer one may replace it."""


def check_free(path: Path, ours: Ours | None = None) -> None:
    """Raises UserError if anything is at a path that is not `ours`, or if nothing can be written there.

    For the time before the work.
    """
    if ours is not None:
        check_writable(path)  # It says of a directory that a file is wanted.
    if not _is_free(path, ours):
        what = (
            "; give a new directory"
            if ours is None
            else (" and is nothing that this command wrote; give another name, or move it away")
        )
        raise UserError(f"{path} exists already{what}")
    check_writable(path)


@contextlib.contextmanager
def creating(path: Path, ours: Ours | None = None) -> Iterator[Path]:
    """Yields a temporary path beside `path`, which gets its name if all goes well and nothing has it yet.

    If something came there meanwhile that is not `ours`, it stays, and what was written keeps another name.

    Args:
      path: for a file or a directory.
      ours: what may be replaced; nothing if absent.

    Raises:
      UserError: something is there, or it cannot be written.
    """
    check_free(path, ours)
    with beside(path) as temporary:
        yield temporary
        give_usual_modes(temporary)
        try:
            if ours is not None and os.path.lexists(path) and _is_free(path, ours):
                os.replace(temporary, path)
            else:
                _name(temporary, path)
        except OSError as error:
            if not os.path.lexists(path):
                raise
            other = path.with_name(f"{path.stem}-{uuid.uuid4().hex[:8]}{path.suffix}")
            _name(temporary, other)
            raise UserError(
                f"{path} was made by somebody else meanwhile and is left alone; what was to stand there is "
                f"{other}"
            ) from error


def _is_free(path: Path, ours: Ours | None) -> bool:
    if not os.path.lexists(path):  # A link that leads nowhere is there, too.
        return path.name not in ("", "..")
    return ours is not None and path.is_file() and not path.is_symlink() and ours(path)


def _name(temporary: Path, path: Path) -> None:
    """Gives a file or directory a name that nothing has.

    Raises:
      OSError: something has it.
    """
    if temporary.is_dir():
        if os.path.lexists(path):  # Else an empty directory would make room.
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        temporary.rename(path)
        return
    try:
        os.link(temporary, path)  # Unlike a rename, it never replaces.
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS) or os.path.lexists(path):
            raise
        temporary.rename(path)  # This file system has no links.
