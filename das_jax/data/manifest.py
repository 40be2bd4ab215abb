"""What a directory of prepared files held when it was complete: sizes and hashes, so that damage shows."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from hashlib import file_digest
from pathlib import Path
from typing import Any

Manifest = Mapping[str, Any]
"""`{"bytes": size, "sha256": hexadecimal}` by the path of a file, relative to the directory."""


def describe(directory: Path) -> dict[str, Any]:
    """The manifest of all files below a directory, sorted."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    with ThreadPoolExecutor() as pool:  # Hashing lets go of Python's lock.
        hashes = list(pool.map(_hash, paths))
    return {
        path.relative_to(directory).as_posix(): {"bytes": path.stat().st_size, "sha256": digest}
        for path, digest in zip(paths, hashes, strict=True)
    }


def damage(directory: Path, manifest: Manifest) -> str | None:
    """What has happened to a file since; files that came later do not count.

    Args:
        directory: Where the files are.
        manifest: What `describe` gave.

    Returns:
        A part of a sentence, or None if every file is as it was. Sizes are compared before any hash.
    """
    for name, known in manifest.items():
        path = directory / name
        if not path.is_file():
            return f"{name} is missing"
        size = path.stat().st_size
        if size != known["bytes"]:
            return f"{name} has {size:,} bytes and not {known['bytes']:,}"

    def changed(name: str) -> str | None:
        try:
            same = _hash(directory / name) == manifest[name]["sha256"]
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
        return None if same else f"the content of {name} has changed"

    with ThreadPoolExecutor() as pool:
        return next(filter(None, pool.map(changed, manifest)), None)


def _hash(path: Path) -> str:
    with path.open("rb") as stream:
        return file_digest(stream, "sha256").hexdigest()
