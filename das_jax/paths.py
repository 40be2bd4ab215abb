"""What can be a path, wherever one is given: in a setting or on the command line."""

import os
import re
from pathlib import Path

LONGEST_NAME = 255
"""Bytes of a name, on every file system in use."""
LONGEST = 1024
"""Bytes of a path: a quarter of what Linux takes, as a run makes directories of its own below it."""

_ELSEWHERE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def unusable(path: str, buckets: bool = False) -> str | None:
    """What is wrong with a path, to be written after what it is of; None if nothing is.

    Args:
      path: as it was given.
      buckets: whether it may be in a bucket, as in gs://bucket/texts/*.txt.
    """
    if not path.strip():
        return "is empty; give a path, `.` for this directory"
    if "\0" in path:
        return "holds a NUL character, which no path can; remove it"
    try:
        size = len(os.fsencode(path))
    except UnicodeEncodeError:
        return "holds a character that no path can; remove it"
    if size > LONGEST:
        return f"is {size:,} bytes long; a path may have {LONGEST:,}"
    longest = max(len(os.fsencode(name)) for name in path.split("/"))
    if longest > LONGEST_NAME:
        return f"has a name of {longest} bytes in it; file systems take {LONGEST_NAME}"
    if _ELSEWHERE.match(path):
        return (
            None
            if buckets
            else (
                "is not on this machine; a bucket can hold corpora and tables, but not this: mount it, and "
                "give the path where it is mounted"
            )
        )
    try:
        Path(path).expanduser()
    except RuntimeError:
        user = path.split("/")[0]
        return f"begins with {user}, and there is no such user here; write the directory out"
    return None
