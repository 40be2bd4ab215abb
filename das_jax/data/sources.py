"""Raw text: files, JSONL, CSV, Parquet, TFDS, HuggingFace datasets, the demo, differences of snapshots."""

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, assert_never

from das_jax.data import demo, files, globs, hubs, records, snapshots
from das_jax.data.settings import (
    CSVSource,
    DemoSource,
    HuggingFaceSource,
    JSONLSource,
    ParquetSource,
    SnapshotsSource,
    Source,
    TextSource,
    TFDSSource,
)
from das_jax.data.time_prefix import time_prefix


def documents(source: Source, cache_dir: Path) -> Iterator[str]:
    """Reads the documents of a source one after the other, in constant memory.

    Args:
        source: Where the text is and how it is read.
        cache_dir: Where demo files are kept.

    Yields:
        Documents, never blank, without white space at the ends.

    Raises:
        UserError: The source is not there, damaged, not UTF-8 or not of the promised form; the
            sentence names file and line.
    """
    for document in _read(source, cache_dir):
        if stripped := document.strip():
            yield stripped


def _read(source: Source, cache_dir: Path) -> Iterator[str]:
    match source:
        case TextSource():
            return files.text(source.path, source.documents)
        case JSONLSource() | CSVSource() | ParquetSource() | TFDSSource() | HuggingFaceSource():
            # A blank text with a date is blank.
            read = records.documents(source)
            return (each.prefix + each.text for each in read if each.text.strip())
        case DemoSource(name="sotu"):
            return _addresses(source, cache_dir)
        case DemoSource():
            return demo.texts(source.name, cache_dir)
        case SnapshotsSource():
            return snapshots.documents(source, Path(cache_dir))
        case _:
            assert_never(source)


def _addresses(source: DemoSource, cache_dir: Path) -> Iterator[str]:
    for row in demo.rows(source.name, cache_dir):
        if source.years and not source.years[0] <= int(row["year"]) <= source.years[1]:
            continue
        prefix = time_prefix(row["date"], "date", row["fileid"]) if source.date else ""
        parts = re.split(r"\n\s*\n", row["text"]) if source.paragraphs else [row["text"]]
        yield from (prefix + part.strip() for part in parts if part.strip())


def pieces(source: Source) -> list[Source]:
    """Sources that can be read at the same time and, one after the other, are this one.

    Files are pieces, and so are the shards of a TFDS split; everything else is one piece.

    Raises:
        UserError: The source is not there.
    """
    match source:
        case TextSource() | JSONLSource() | CSVSource() | ParquetSource():
            return [replace(source, path=str(path)) for path in globs.matching(source.path)]
        case TFDSSource():
            splits = hubs.tfds_splits(source.name, source.split, source.data_dir)
            return [replace(source, split=split) for split in splits]
        case _:
            return [source]


def fingerprint(source: Source) -> str:
    """What makes two sources the same text: their content and how it is read, not where it lies.

    Args:
        source: The source.

    Returns:
        A SHA-256 in hexadecimal.

    Raises:
        UserError: The source is not there.
    """
    match source:
        case TextSource() | JSONLSource() | ParquetSource():
            content = files.digest(source.path)
        case CSVSource():
            said = files.csv_forms(source.path, source.delimiter, source.quoting)
            return identity(source, files.digest(source.path), *said)
        case TFDSSource():
            content = hubs.tfds_fingerprint(source.name, source.split, source.data_dir)
        case HuggingFaceSource():
            content = hubs.huggingface_fingerprint(source.name, source.config)
        case DemoSource():
            content = demo.ASSETS[demo.TEXTS[source.name]].sha256
        case SnapshotsSource():
            both = fingerprint(source.old), fingerprint(source.new)
            parts = [source.kind, source.id, source.what, *both]
            return sha256(json.dumps(parts).encode()).hexdigest()
        case _:
            assert_never(source)
    return identity(source, content)


def identity(settings: Any, *content: str) -> str:
    """A SHA-256 over a content and how it is read: all settings but those that say where it lies, and
    those that the content says already.
    """
    elsewhere = ("path", "data_dir", "quoting")
    reading = {k: v for k, v in asdict(settings).items() if k not in elsewhere}
    # So that what was prepared before there were these options is found.
    for option in ("date", "years", "paragraphs", "prompt", "response", "messages"):
        if not reading.get(option, True):
            del reading[option]
    return sha256(json.dumps([reading, *content], sort_keys=True).encode()).hexdigest()


def label(source: Source) -> str:
    """A short name of a source, for people: `demo:acl`, `demo:sotu:1900-1949`, `text:papers/*.txt`."""
    if isinstance(source, SnapshotsSource):
        return f"{source.what}:{label(source.new)}"
    if isinstance(source, DemoSource) and source.years:
        return f"demo:{source.name}:{source.years[0]}-{source.years[1]}"
    return f"{source.kind}:{source.name if hasattr(source, 'name') else source.path}"
