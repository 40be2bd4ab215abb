"""Documents and records in files: text, JSONL, CSV and Parquet, compressed or not, read as a stream."""

import json
from collections.abc import Iterable, Iterator, Mapping
from hashlib import file_digest, sha256
from io import TextIOWrapper
from typing import Any

import pyarrow as pa
import pyarrow.parquet
from etils import epath

from das_jax import stopping
from das_jax.data import delimited
from das_jax.data.compression import (
    DAMAGED,
    HEAD,
    check_head,
    encoding_of,
    format_of,
    opened,
    opened_raw,
    unreadable,
)
from das_jax.data.globs import matching
from das_jax.data.settings import Quoting
from das_jax.errors import UserError


def digest(pattern: str) -> str:
    """SHA-256 over the content of all files of a glob, in order, and the ends of their names."""
    total = sha256()
    for path in matching(pattern):
        stopping.check()
        with opened_raw(path) as stream:
            try:
                content = file_digest(stream, "sha256").hexdigest()
            except OSError as error:
                raise unreadable(path, error) from error
        total.update(f"{path.suffix} {content}\n".encode())
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


def jsonl(pattern: str, fields: Mapping[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of JSONL files that have certain fields, each with its place.

    Args:
        pattern: A path or a glob.
        fields: The fields by the settings that name them.

    Raises:
        UserError: As `jsonl_records`, or a field is missing in a line.
    """
    return with_fields(jsonl_records(pattern), fields)


def with_fields(
    records: Iterable[tuple[str, dict[str, Any]]], fields: Mapping[str, str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Passes records through that have certain fields.

    Args:
        records: Each with its place.
        fields: The fields by the settings that name them.

    Raises:
        UserError: A record lacks a field.
    """
    for where, record in records:
        for setting, field in fields.items():
            if field not in record:
                raise UserError(
                    f"{where}, has no field {field!r}: it has {quoted(record)}; "
                    f"set `{setting}` of this source."
                )
        yield where, record


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
                remedy = "mend or drop the line"
                if line.strip() in ("[", "{"):
                    remedy = "JSONL is one object a line, no list and no object over several lines"
                raise UserError(f"{where}, is not JSON ({reason}): {remedy}.") from error
            if not isinstance(record, dict):
                raise UserError(f"{where}, is not a JSON object: give every line one.")
            yield where, record


def csv_records(
    pattern: str, delimiter: str | None, quoting: Quoting = "auto"
) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of CSV files by the names in their first lines, each with its place: `FILE, line N`.

    Args:
        pattern: A path or a glob.
        delimiter: What stands between columns; None: see `csv_form`.
        quoting: Whether quotes hold a field together; see `csv_form`.

    Raises:
        UserError: No such file, a damaged one, bytes that are not UTF-8, a line that is not CSV, a
            name that two columns have, or a row that has not as many columns as the first line.
    """
    for path in matching(pattern):
        separator, in_quotes = csv_form(path, delimiter, quoting)
        lines = _lines(path)
        found = (
            delimited.quoted(lines, separator, path)
            if in_quotes
            else delimited.plain(lines, separator)
        )
        names: list[str] = []
        for row in found:
            where = f"{path}, line {row.line}"
            if row.fields == [""]:
                continue
            if not names:
                names = _header(row.fields, where)
                if quoting == "auto" and not in_quotes and any(map(_in_quotes, names)):
                    raise UserError(
                        f"{where}, names columns in quotes, which are characters like any other where tabs "
                        "stand between columns: set `quoting: quoted` of this table, or `none` if they "
                        "belong to the names."
                    )
            elif len(row.fields) != len(names):
                until = "" if row.last_line == row.line else f" up to line {row.last_line}"
                raise UserError(
                    f"{where}, has {len(row.fields)} columns{until} where the first line names {len(names)}: "
                    "mend the line, or set `delimiter` or `quoting` of this table."
                )
            else:
                yield where, dict(zip(names, row.fields, strict=True))


def csv_form(path: epath.Path, delimiter: str | None, quoting: Quoting) -> tuple[str, bool]:
    """What stands between the columns of a file, and whether quotes hold a field together.

    Args:
        path: The file.
        delimiter: None for a tab in .tsv, compressed or not, and otherwise a comma.
        quoting: `auto` for no quotes where tabs stand between columns, and quotes elsewhere.
    """
    if delimiter is None:
        suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
        delimiter = "\t" if ".tsv" in suffixes else ","
    return delimiter, quoting == "quoted" or (quoting == "auto" and delimiter != "\t")


def csv_forms(pattern: str, delimiter: str | None, quoting: Quoting) -> list[str]:
    """What the names of CSV files say of how they are read; a digest does not tell .tsv.gz from .csv.gz."""
    said = []
    for path in matching(pattern):
        ending, _ = csv_form(path, None, quoting)
        _, in_quotes = csv_form(path, delimiter, quoting)
        said.append(ending if in_quotes else f"{ending} unquoted")
    return said


def _in_quotes(name: str) -> bool:
    return len(name) > 1 and name.startswith('"') and name.endswith('"')


def _header(names: list[str], where: str) -> list[str]:
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(f"{where}, names two columns {twice[0]!r}: give each its own name.")
    if any("\r" in name for name in names):
        raise UserError(
            f"{where}, holds a carriage return alone, which ends no line here: end lines with a line feed."
        )
    return names


def parquet(pattern: str, fields: Mapping[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Some columns of the rows of Parquet files, each row with its place.

    Args:
        pattern: A path or a glob.
        fields: The columns by the settings that name them.

    Raises:
        UserError: No such file, a damaged one, no such column, or a text that is not UTF-8.
    """
    wanted = list(dict.fromkeys(fields.values()))
    for path in matching(pattern):
        try:
            with opened_raw(path) as stream, _parquet_file(path, stream) as table:
                columns = table.schema_arrow.names
                for setting, field in fields.items():
                    if field not in columns:
                        raise UserError(
                            f"{path} has no column {field!r}: it has {quoted(columns)}; "
                            f"set `{setting}` of this source."
                        )
                row = 0
                for batch in table.iter_batches(batch_size=256, columns=wanted):
                    for values in zip(*(batch.column(name) for name in wanted), strict=True):
                        row += 1
                        where = f"{path}, row {row}"
                        found = (_parquet_value(value, where) for value in values)
                        yield where, dict(zip(wanted, found, strict=True))
        except (*DAMAGED, pa.ArrowException) as error:
            raise _damaged(path, error) from error


def _parquet_file(path: epath.Path, stream: Any) -> pa.parquet.ParquetFile:
    head = stream.peek(HEAD)
    packed = format_of(head)
    if packed is not None:
        raise UserError(
            f"{path} is compressed with {packed.name} as a whole, which Parquet is not: unpack it."
        )
    if not head:
        raise UserError(f"{path} is empty: give a whole Parquet file.")
    if not head.startswith(b"PAR1"):
        check_head(path, head)
        raise UserError(
            f"{path} cannot be read to its end (it does not begin as Parquet does): text is read with "
            "kind: text or jsonl."
        )
    return pa.parquet.ParquetFile(stream)


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


def _parquet_value(value: pa.Scalar, where: str) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError as error:
        raise _undecodable(where, error) from error


def _lines(path: epath.Path) -> Iterator[tuple[int, str]]:
    try:
        with opened(path) as stream:
            encoding = encoding_of(stream.peek(HEAD))
            if encoding is not None:
                yield from _wide_lines(path, stream, encoding)
                return
            for number, line in enumerate(stream, 1):
                try:
                    yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise _undecodable(f"{path}, line {number}", error) from error
    except DAMAGED as error:
        raise _damaged(path, error) from error


def _wide_lines(path: epath.Path, stream: Any, encoding: str) -> Iterator[tuple[int, str]]:
    number = 0
    try:
        with TextIOWrapper(stream, encoding, newline="\n") as text:
            for number, line in enumerate(text, 1):
                yield number, line
    except UnicodeError as error:
        raise UserError(
            f"{path} begins as {encoding.upper()} and is not that after line {number} ({error}): "
            "convert the text to UTF-8."
        ) from error


def _undecodable(where: str, error: UnicodeDecodeError) -> UserError:
    byte = error.object[error.start]
    return UserError(
        f"{where}: byte 0x{byte:02x} at position {error.start + 1} is not UTF-8; convert the text to UTF-8."
    )


def _damaged(path: epath.Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    # A zstd window takes up to 2 GiB.
    remedy = "free some memory" if "not enough memory" in reason else "is the file complete?"
    return UserError(f"{path} cannot be read to its end ({reason}): {remedy}")
