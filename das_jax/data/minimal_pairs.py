"""Minimal pairs: two sentences that differ in one thing, one of them right, as BLiMP has them (Warstadt et
al., TACL 2020).
"""

from typing import Any

from das_jax.data import files
from das_jax.data.questions import Answer, Questions, Writer
from das_jax.data.settings import MinimalPairsSettings
from das_jax.errors import UserError


def load_pairs(settings: MinimalPairsSettings, writer: Writer) -> Questions:
    """Reads a set of minimal pairs.

    Raises:
      UserError: a file is missing, damaged or empty, or a pair has not two sentences that the model can be
        asked for.
    """
    of = f"evaluation.minimal_pairs, {settings.name}"
    pairs = []
    for where, record in files.jsonl_records(settings.path):
        good = _sentence(record, settings.good, where)
        bad = _sentence(record, settings.bad, where)
        if good == bad:
            raise UserError(f"{where}: both sentences are {good!r}; drop the line ({of})")
        pairs.append((Answer(good, 0, right=True), Answer(bad, 0, right=False)))
    if not pairs:
        raise UserError(f"{settings.path} has no pairs; give it at least one ({of})")
    return writer.write(pairs, of)


def _sentence(record: dict[str, Any], field: str, where: str) -> str:
    if field not in record:
        raise UserError(
            f"{where}, has no field {field!r}: it has {files.quoted(record)}; set `good` and `bad` of these "
            "pairs."
        )
    text = files.checked_text(record[field], field, where).strip()
    if not text:
        raise UserError(f"{where}: field {field!r} is empty; fill it or drop the line.")
    return text
