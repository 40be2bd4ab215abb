"""Rows with named columns, for labelled data: JSONL, CSV, TFDS, HuggingFace datasets, the demo."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, assert_never

from das_jax.data import demo, demo_tasks, files, globs, hubs
from das_jax.data.settings import (
    CSVTable,
    DemoTable,
    HuggingFaceTable,
    JSONLTable,
    Table,
    TFDSTable,
)
from das_jax.data.sources import identity


def rows(table: Table, cache_dir: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Reads the rows of a table one after the other, in constant memory (but for the demo's).

    Args:
        table: Where the rows are and how they are read.
        cache_dir: Where demo files are kept.

    Yields:
        The place of a row, for error messages (`reviews.jsonl, line 3`), and its values by the names of
        their columns. Labels of datasets that know their classes are the names of these.

    Raises:
        UserError: The table is not there, damaged, not UTF-8 or not of the promised form; the sentence
            names file and line.
    """
    match table:
        case JSONLTable():
            return files.jsonl_records(table.path)
        case CSVTable():
            return files.csv_records(table.path, table.delimiter, table.quoting)
        case TFDSTable():
            return hubs.tfds_records(table.name, table.split, table.data_dir)
        case HuggingFaceTable():
            return hubs.huggingface_records(table.name, table.config, table.split)
        case DemoTable():
            return (
                (f"demo {table.name}, {table.split} row {number}", row)
                for number, row in enumerate(demo_tasks.rows(table.name, table.split, cache_dir), 1)
            )
        case _:
            assert_never(table)


def common(table: Table, other: Table) -> str | None:
    """What two tables are both read from: a file, whatever paths lead to it, or a split of a dataset.

    Args:
        table: A table.
        other: Another.

    Returns:
        Its name, or None; contents are not compared.

    Raises:
        UserError: A table is not there.
    """
    if isinstance(table, JSONLTable | CSVTable):
        if not isinstance(other, JSONLTable | CSVTable):
            return None
        return next(map(str, globs.common(table.path, other.path)), None)
    return f"{table.name}, split {table.split}" if table == other else None


def fingerprint(table: Table) -> str:
    """What makes two tables the same rows: their content and how it is read, not where it lies.

    Args:
        table: The table.

    Returns:
        A SHA-256 in hexadecimal.

    Raises:
        UserError: The table is not there.
    """
    match table:
        case JSONLTable():
            return identity(table, files.digest(table.path))
        case CSVTable():
            said = files.csv_forms(table.path, table.delimiter, table.quoting)
            return identity(table, files.digest(table.path), *said)
        case TFDSTable():
            return identity(table, hubs.tfds_fingerprint(table.name, table.split, table.data_dir))
        case HuggingFaceTable():
            return identity(table, hubs.huggingface_fingerprint(table.name, table.config))
        case DemoTable():
            return identity(table, demo.ASSETS[demo_tasks.ASSETS[table.name]].sha256)
        case _:
            assert_never(table)
