"""The files that a path or a glob means, on this machine or in a bucket."""

import fnmatch
import glob
import os
from collections.abc import Iterator
from pathlib import Path

from etils import epath

from das_jax.data.compression import unreadable
from das_jax.errors import UserError


def matching(pattern: str) -> list[epath.Path]:
    """The files that a path or a glob means, sorted; `**` goes into folders.

    A file to which several paths lead, over links, is one file: the first path counts.

    Args:
        pattern: On this machine, or in a bucket: gs://bucket/texts/*.txt.

    Raises:
        UserError: There is none, or it or the bucket cannot be reached.
    """
    if "://" in pattern:
        return _matching_in_bucket(pattern)
    try:
        expanded = Path(pattern).expanduser()
        found = [expanded] if expanded.is_file() else list(_expanded(expanded))
        files = {_identity(path): path for path in sorted(found, reverse=True) if path.is_file()}
    except OSError as error:
        raise unreadable(pattern, error) from error
    except (RuntimeError, ValueError) as error:  # ~nobody, and a NUL.
        raise UserError(f"{pattern!r} is no path ({error}): correct it.") from error
    if not files:
        raise _no_match(pattern, found)
    return [epath.Path(path) for path in sorted(files.values())]


def common(pattern: str, other: str) -> list[epath.Path]:
    """The files that two patterns both mean, whatever paths lead there, as the first one names them."""
    theirs = {_identity(path) for path in matching(other)}
    return [path for path in matching(pattern) if _identity(path) in theirs]


def _identity(path: Path | epath.Path) -> object:
    if "://" in str(path):
        return str(path)
    status = os.stat(path)
    # Some file systems do not number their files.
    return (status.st_dev, status.st_ino) if status.st_ino else path


def _expanded(pattern: Path) -> Iterator[Path]:
    """What `glob.glob` finds with `recursive`, but no directory twice, however many links lead to it."""
    parts = pattern.parts[1:] if pattern.anchor else pattern.parts
    ahead: list[tuple[Path, tuple[str, ...]]] = [(Path(pattern.anchor), parts)]
    entered = set()
    while ahead:
        place, parts = ahead.pop()
        if not parts:
            yield place
            continue
        first, *others = parts
        rest = tuple(others)
        if not glob.has_magic(first):
            if os.path.lexists(place / first):
                ahead.append((place / first, rest))
            continue
        try:
            here = (_identity(place), parts)
            if here in entered:
                continue
            entered.add(here)
            with os.scandir(place) as scanned:
                entries = sorted(scanned, key=lambda entry: entry.name)
        except OSError:  # No directory, or not ours to read.
            continue
        shown = [entry for entry in entries if first[0] == "." or entry.name[0] != "."]
        if first == "**":
            found = [(place / e.name, parts) for e in shown if _is_directory(e)]
            found += [(place, rest)] if rest else [(place / e.name, ()) for e in shown]
        else:
            found = [(place / e.name, rest) for e in shown if fnmatch.fnmatchcase(e.name, first)]
        ahead.extend(reversed(found))


def _is_directory(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # A link to itself.
        return False


def _matching_in_bucket(pattern: str) -> list[epath.Path]:
    scheme, _, rest = pattern.partition("://")
    bucket, _, inside = rest.partition("/")
    try:
        found = sorted(epath.Path(f"{scheme}://{bucket}").glob(inside))
    except Exception as error:  # Every cloud's client raises its own types.
        raise UserError(
            f"{pattern} cannot be reached ({error}): check the path, the network and your rights; "
            "gs:// needs `pip install gcsfs`, s3:// `pip install s3fs`."
        ) from error
    if not found:
        raise _no_match(pattern, [])
    return found


def _no_match(pattern: str, found: list[Path]) -> UserError:
    if any(path.is_dir() for path in found):
        what = "matches directories only" if glob.has_magic(pattern) else "is a directory"
        return UserError(f"{pattern} {what}: name the files in it, {pattern.rstrip('/')}/*.")
    for path in found:
        if path.is_symlink() and not path.exists():
            return UserError(
                f"{path} is a link to {os.readlink(path)}, which is not there: correct the link."
            )
    if found:
        return UserError(
            f"{found[0]} is not a regular file, and must be read more than once: write a file."
        )
    return UserError(f"No file matches {pattern}: correct the path.")
