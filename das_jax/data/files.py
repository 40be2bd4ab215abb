"""Documents and records in files: text, JSONL, CSV and Parquet, compressed or not, read as a stream."""

import bz2
import csv
import glob
import gzip
import json
import lzma
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from hashlib import file_digest, sha256
from io import BufferedIOBase, BufferedReader
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
from etils import epath

from das_jax import stopping
from das_jax.errors import UserError

# What the decompressors raise for a file that is cut short or damaged.
DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowException)


def matching(pattern: str) -> list[epath.Path]:
    """The files that a path or a glob means, sorted; `**` goes into folders.

    Args:
        pattern: On this machine, or in a bucket: gs://bucket/texts/*.txt.

    Raises:
        UserError: There is none, or the bucket cannot be reached.
    """
    if "://" in pattern:
        return _matching_in_bucket(pattern)
    expanded = Path(pattern).expanduser()
    paths = (
        [expanded] if expanded.is_file() else map(Path, glob.glob(str(expanded), recursive=True))
    )
    found = sorted(epath.Path(path) for path in paths if path.is_file())
    if not found:
        raise _no_match(pattern)
    return found


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
        raise _no_match(pattern)
    return found


def _no_match(pattern: str) -> UserError:
    return UserError(f"No file matches {pattern}: correct the path.")


def digest(pattern: str) -> str:
    """SHA-256 over the content of all files of a glob, in order, and their compression."""
    total = sha256()
    for path in matching(pattern):
        stopping.check()
        with path.open("rb") as stream:
            total.update(f"{path.suffix} {file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def text(pattern: str, separator: str) -> Iterator[str]:
    """Documents of text files.

    Args:
        pattern: A path or a glob.
        separator: `line`, every line is a document, or `blank_line`, blank lines stand between them.

    Yields:
        One document after the other; some may be blank.

    Raises:
        UserError: No such file, a damaged one, or bytes that are not UTF-8.
    """
    for path in matching(pattern):
        lines = (line for _, line in _lines(path))
        yield from lines if separator == "line" else _paragraphs(lines)


def _paragraphs(lines: Iterator[str]) -> Iterator[str]:
    paragraph: list[str] = []
    for line in lines:
        if line.strip():
            paragraph.append(line)
        elif paragraph:
            yield "".join(paragraph)
            paragraph = []
    yield "".join(paragraph)


def jsonl(pattern: str, field: str) -> Iterator[str]:
    """Documents of JSONL files: the text in one field of each line's object.

    Raises:
        UserError: As `jsonl_records`, or a line where the field is missing or not a text.
    """
    for where, record in jsonl_records(pattern):
        if field not in record:
            raise UserError(
                f"{where}, has no field {field!r}: it has {quoted(record)}; "
                "set `field` of this source."
            )
        yield checked_text(record[field], field, where)


def jsonl_records(pattern: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of JSONL files, each with its place: `FILE, line N`.

    Raises:
        UserError: No such file, a damaged one, bytes that are not UTF-8, or a line that is not a JSON
            object.
    """
    for path in matching(pattern):
        for number, line in _lines(path):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                reason = getattr(error, "msg", str(error))
                raise UserError(
                    f"{where}, is not JSON ({reason}): mend or drop the line."
                ) from error
            if not isinstance(record, dict):
                raise UserError(f"{where}, is not a JSON object: give every line one.")
            yield where, record


def csv_records(pattern: str, delimiter: str | None) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of CSV files by the names in their first lines, each with its place: `FILE, line N`.

    Args:
        pattern: A path or a glob.
        delimiter: What stands between columns; None: see `csv_delimiter`.

    Raises:
        UserError: No such file, a damaged one, bytes that are not UTF-8, a line that is not CSV, a
            name that two columns have, or a row that has not as many columns as the first line.
    """
    for path in matching(pattern):
        lines = (line for _, line in _lines(path))
        reader = csv.reader(lines, delimiter=delimiter or csv_delimiter(path), strict=True)
        names: list[str] = []
        start = 1
        try:
            for row in reader:
                where, start = f"{path}, line {start}", reader.line_num + 1
                if not row:
                    continue
                if not names:
                    names = _header(row, where)
                elif len(row) != len(names):
                    raise UserError(
                        f"{where}, has {len(row)} columns where the first line names {len(names)}: "
                        "mend the line, or set `delimiter` of this table."
                    )
                else:
                    yield where, dict(zip(names, row, strict=True))
        except csv.Error as error:
            raise UserError(
                f"{path}, line {start}, is not CSV ({error}): mend the line; quotes in a text are "
                'doubled and the text is put in quotes, "like ""this""".'
            ) from error


def csv_delimiter(path: epath.Path) -> str:
    """A tab for .tsv, compressed or not, and otherwise a comma."""
    return "\t" if ".tsv" in path.suffixes[-2:] else ","


def _header(names: list[str], where: str) -> list[str]:
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(f"{where}, names two columns {twice[0]!r}: give each its own name.")
    return names


def parquet(pattern: str, field: str) -> Iterator[str]:
    """Documents of Parquet files: the text in one column.

    Raises:
        UserError: No such file, a damaged one, no such column, or a value that is not a text.
    """
    for path in matching(pattern):
        try:
            with path.open("rb") as stream, pa.parquet.ParquetFile(stream) as table:
                columns = table.schema_arrow.names
                if field not in columns:
                    raise UserError(
                        f"{path} has no column {field!r}: it has {quoted(columns)}; "
                        "set `field` of this source."
                    )
                row = 0
                for batch in table.iter_batches(batch_size=256, columns=[field]):
                    for value in batch.column(0):
                        row += 1
                        yield _parquet_text(value, field, f"{path}, row {row}")
        except DAMAGED as error:
            raise _damaged(path, error) from error


def checked_text(value: object, field: str, where: str) -> str:
    """Passes a text through; bytes are decoded.

    Args:
        value: What a record holds.
        field: The name of the field.
        where: The record, for the error message.

    Raises:
        UserError: It is not a text, or not UTF-8.
    """
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise _undecodable(where, error) from error
    if not isinstance(value, str):
        kind = "null" if value is None else type(value).__name__
        raise UserError(
            f"{where}: field {field!r} holds {kind}, not a text; mend or drop the record."
        )
    try:
        value.encode()  # JSON can spell halves of characters, which no tokenizer takes.
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: field {field!r} holds half a character (\\u{ord(value[error.start]):04x}); "
            "mend or drop the record."
        ) from error
    return value


def quoted(names: Iterable[object]) -> str:
    """Names for an error message: 'text', 'label'."""
    return ", ".join(map(repr, names)) or "none"


def _parquet_text(value: pa.Scalar, field: str, where: str) -> str:
    try:
        return checked_text(value.as_py(), field, where)
    except UnicodeDecodeError as error:
        raise _undecodable(where, error) from error


def _lines(path: epath.Path) -> Iterator[tuple[int, str]]:
    try:
        with _opened(path) as stream:
            for number, line in enumerate(stream, 1):
                try:
                    yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise _undecodable(f"{path}, line {number}", error) from error
    except DAMAGED as error:
        raise _damaged(path, error) from error


@contextmanager
def _opened(path: epath.Path) -> Iterator[BufferedIOBase]:
    with path.open("rb") as stream, _decompressed(stream, path.suffix) as text:
        yield text


def _decompressed(stream: Any, suffix: str) -> BufferedIOBase:
    match suffix:
        case ".gz":
            return gzip.open(stream, "rb")
        case ".bz2":
            return bz2.open(stream, "rb")
        case ".xz":
            return lzma.open(stream, "rb")
        case ".zst":
            return BufferedReader(pa.input_stream(stream, compression="zstd"))
        case _:
            return stream


def _undecodable(where: str, error: UnicodeDecodeError) -> UserError:
    byte = error.object[error.start]
    return UserError(
        f"{where}: byte 0x{byte:02x} at position {error.start + 1} is not UTF-8; convert the text to UTF-8."
    )


def _damaged(path: epath.Path, error: Exception) -> UserError:
    return UserError(f"{path} cannot be read to its end ({error}): is the file complete?")
