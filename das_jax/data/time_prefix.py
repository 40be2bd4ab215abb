"""When a text was written, said in front of it: `year: 2021 text: ...` (Dhingra et al., TACL 2022)."""

import datetime
import math
import re
from typing import Any, NamedTuple

from das_jax.data.tokenization import Encoder
from das_jax.errors import UserError

YEARS = range(1000, 10_000)


def time_prefix(value: Any, field: str, where: str) -> str:
    """What stands before a text of this date; nothing where there is no date.

    Args:
        value: What a record holds: a year, a date, or a text that begins with a year.
        field: The name of the field.
        where: The record, for the error message.

    Raises:
        UserError: It is no date.
    """
    if value is None or value in ("", b"") or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, datetime.date):
        value = value.year
    text = value.decode(errors="replace") if isinstance(value, bytes) else f"{value}"
    found = re.match(r"\s*([1-9]\d{3})(?!\d)", text)
    if found is None or isinstance(value, bool):
        raise UserError(
            f"{where}: field {field!r} holds {value!r}, which begins with no year: give a year (2021), a "
            "date that begins with one (2021-05-03), or null where there is none."
        )
    return f"year: {found[1]} text: "


class PrefixTokens(NamedTuple):
    """How a tokenizer spells the prefix.

    Attributes:
        opens: The tokens of `year:`.
        closes: Those of ` text:`.
        longest: The most tokens of a prefix.
        boundaries: What may stand before a document: the token that opens a chunk, and the separator.
    """

    opens: tuple[int, ...]
    closes: tuple[int, ...]
    longest: int
    boundaries: tuple[int, ...]


def prefix_tokens(encoder: Encoder) -> PrefixTokens:
    """The prefix as a corpus's tokenizer spells it."""
    spelled = [time_prefix(year, "", "").rstrip() for year in YEARS]
    encodings = encoder.backend.encode_batch(spelled, add_special_tokens=False)
    first, start, stop = encodings[0], len("year:"), len("year: 2021")
    return PrefixTokens(
        opens=tuple(
            i for i, (_, end) in zip(first.ids, first.offsets, strict=True) if end <= start
        ),
        closes=tuple(i for i, (at, _) in zip(first.ids, first.offsets, strict=True) if at >= stop),
        longest=max(len(encoding.ids) for encoding in encodings),
        boundaries=tuple(
            i for i in (encoder.special.first, encoder.special.separator) if i is not None
        ),
    )
