"""Rows of CSV and TSV: fields with and without quotes, however long.

Python's csv module refuses a field of more than 131,072 characters unless a setting of the whole process
is changed, and cannot say in which line a quote was opened.
"""

from collections.abc import Iterator
from typing import NamedTuple

from das_jax.errors import UserError

Lines = Iterator[tuple[int, str]]
"""Numbers, from 1, and lines with their ends."""


class Row(NamedTuple):
    line: int
    """The number of the line in which it begins."""
    last_line: int
    fields: list[str]


def plain(lines: Lines, delimiter: str) -> Iterator[Row]:
    """Rows in which a quote is a character like any other: every line is a row."""
    for number, line in lines:
        yield Row(number, number, _without_end(line).split(delimiter))


def quoted(lines: Lines, delimiter: str, path: object) -> Iterator[Row]:
    """Rows as RFC 4180 has them: a field in quotes may hold delimiters, line ends and doubled quotes.

    A quote inside a field that does not begin with one is a character like any other.

    Args:
        lines: The file.
        delimiter: One character.
        path: The file's name, for error messages.

    Raises:
        UserError: A quote is never closed, or something follows the quote that closes a field.
    """
    for number, line in lines:
        if '"' not in line:  # Nearly all.
            yield Row(number, number, _without_end(line).split(delimiter))
        else:
            yield _quoted_row(number, line, lines, delimiter, path)


def _quoted_row(first: int, line: str, lines: Lines, delimiter: str, path: object) -> Row:
    fields: list[str] = []
    number, start = first, 0
    while True:
        if line.startswith('"', start):
            opened, pieces, start = number, [], start + 1
            while True:
                end = line.find('"', start)
                if end == -1:
                    pieces.append(line[start:])
                    number, line = next(lines, (0, ""))
                    if not line:
                        raise _unclosed(path, opened, len(fields) + 1)
                    start = 0
                elif line.startswith('"', end + 1):
                    pieces.append(line[start : end + 1])
                    start = end + 2
                else:
                    pieces.append(line[start:end])
                    start = end + 1
                    break
            fields.append("".join(pieces))
            if not _without_end(line)[start:]:
                return Row(first, number, fields)
            if line[start] != delimiter:
                raise _followed(path, number, opened, delimiter)
            start += 1
        else:
            end = line.find(delimiter, start)
            if end == -1:
                fields.append(_without_end(line[start:]))
                return Row(first, number, fields)
            fields.append(line[start:end])
            start = end + 1


def _without_end(line: str) -> str:
    return line.removesuffix("\n").removesuffix("\r")


REMEDY = (
    'quotes in a text are doubled and the text is put in quotes, "like ""this"""; where quotes are '
    "characters like any other, set `quoting: none` of this table."
)


def _unclosed(path: object, opened: int, column: int) -> UserError:
    return UserError(
        f"{path}, line {opened}, is not CSV (unexpected end of data): the quote that opens column {column} "
        f"is never closed; {REMEDY}"
    )


def _followed(path: object, number: int, opened: int, delimiter: str) -> UserError:
    where = "" if opened == number else f" that closes it in line {number}"
    return UserError(
        f"{path}, line {opened}, is not CSV ({delimiter!r} expected after '\"'{where}): {REMEDY}"
    )
