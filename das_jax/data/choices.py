"""Multiple choice: what is read, and choices of how to go on, one of them right."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from das_jax.data import tables
from das_jax.data.files import checked_text, quoted
from das_jax.data.questions import Answer, Questions, Writer
from das_jax.data.settings import ChoicesSettings
from das_jax.errors import UserError


def load_choices(settings: ChoicesSettings, writer: Writer, cache_dir: Path) -> Questions:
    """Reads a set of questions.

    Raises:
      UserError: the table cannot be read or is empty, or a row has no context, not two choices or no right
        one; the sentence names the questions, file and line.
    """
    of = f"evaluation.choices, {settings.name}"
    try:
        questions = [
            _question(settings, *found) for found in tables.rows(settings.table, cache_dir)
        ]
    except UserError as error:
        raise UserError(f"{of}: {error}") from error
    if not questions:
        raise UserError(f"{of}: the table has no rows; give it at least one")
    return writer.write(questions, of)


def _question(settings: ChoicesSettings, where: str, values: dict[str, Any]) -> list[Answer]:
    context = _text(_value(values, settings.context, "context", where), settings.context, where)
    choices = _choices(settings.choices, values, where)
    right = _place(_value(values, settings.answer, "answer", where), choices, where)
    return [
        Answer(context + settings.between + choice, len(context), place == right)
        for place, choice in enumerate(choices)
    ]


def _choices(columns: str | Sequence[str], values: dict[str, Any], where: str) -> list[str]:
    if isinstance(columns, str):
        found = _value(values, columns, "choices", where)
        if isinstance(found, str) or not isinstance(found, Sequence):
            raise UserError(
                f"{where}: column {columns!r} is no list of choices; set `choices` to one that is, or to the "
                "columns of the choices."
            )
        choices = [_text(each, columns, where) for each in found]
    else:
        choices = [_text(_value(values, each, "choices", where), each, where) for each in columns]
    if len(set(choices)) < max(2, len(choices)):
        raise UserError(
            f"{where}: the choices are {quoted(choices)}; give two at least, each once."
        )
    return choices


def _place(answer: Any, choices: list[str], where: str) -> int:
    """Of the right choice."""
    text = str(answer).strip()
    if text in choices:
        return choices.index(text)
    if not isinstance(answer, bool) and text.isdecimal() and int(text) < len(choices):
        return int(text)
    raise UserError(
        f"{where}: the answer is {text!r}, neither one of the choices {quoted(choices)} nor the place of "
        f"one, from 0 to {len(choices) - 1}."
    )


def _value(values: dict[str, Any], column: str, setting: str, where: str) -> Any:
    if column not in values:
        raise UserError(
            f"{where}, has no column {column!r}: it has {quoted(values)}; set `{setting}` of these questions."
        )
    return values[column]


def _text(value: Any, column: str, where: str) -> str:
    text = checked_text(value, column, where).strip()
    if not text:
        raise UserError(f"{where}: column {column!r} is empty; fill it or drop the row.")
    return text
