"""End tasks: labelled texts become token ids and class numbers."""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from tokenizers import Encoding
from transformers import PreTrainedTokenizerBase

from das_jax.data import tables
from das_jax.data.files import checked_text, quoted
from das_jax.data.roles import GIVEN, OPENS, PADDING, has
from das_jax.data.settings import Sizes as Sizes
from das_jax.data.settings import Table, TaskSettings
from das_jax.data.time_prefix import time_prefix
from das_jax.data.tokenization import USUAL_UNKNOWN, Encoder, encoder
from das_jax.errors import UserError

# Part of every key: raise it when the same input would give other examples.
FORMAT = 1

# Settings that the numbers do not depend on, or whose content is hashed instead.
NOT_HASHED = ("name", "domain", "sizes", "train", "test", "validation")

BATCH_TEXTS = 1024

# What pandas, JSON and JavaScript write where there is no label. NA and None are classes of real tasks.
MISSING = ("nan", "-nan", "<na>", "null", "undefined")


class Examples(NamedTuple):
    """Tokenised texts and their classes."""

    tokens_NxT: np.ndarray
    """Token ids, padded on the right to the task's length; those of decoders have roles. int32."""
    types_NxT: np.ndarray
    """1 for the second text of a pair, 0 elsewhere and where the tokenizer makes no token types; int32."""
    labels_N: np.ndarray
    """Positions in the task's classes; int32."""


@dataclass(frozen=True, eq=False)
class Task:
    """An end task, ready to train on."""

    settings: TaskSettings
    classes: tuple[str, ...]
    """Names of the classes, sorted; numbers by value."""
    train: Examples
    validation: Examples | None
    test: Examples
    train_texts: list[str]
    """As they were read, the two texts of a pair in one."""
    test_texts: list[str]
    key: str
    """A SHA-256 of everything the scores depend on, but for the model and the seed."""
    notes: tuple[str, ...] = ()
    """What to tell people of the tables: what makes the scores better than they are, or worse."""


class _Row(NamedTuple):
    where: str
    text: str
    pair: str | None
    label: str | int


def load_task(
    settings: TaskSettings,
    tokenizer: PreTrainedTokenizerBase,
    cache_dir: Path,
    causal: bool = False,
) -> Task:
    """Reads and tokenises the tables of an end task.

    A decoder reads the two texts of a pair as one, with a line end between them.

    Args:
        settings: The task.
        tokenizer: A fast HuggingFace tokenizer; it is left as it is.
        cache_dir: Where demo files are kept.
        causal: Whether the model is a decoder.

    Returns:
        The task.

    Raises:
        UserError: A table cannot be read or is empty, a row has no text or no label that training
            knows, there is only one class, training and test rows come from one file, the tokenizer knows
            no word, or the sizes are not those promised; the sentence names task, file and line.
    """
    enc = encoder(tokenizer, "all", causal)
    with _naming(settings):
        _check_apart(settings)
        train = _rows(settings, "train", cache_dir)
        test = _rows(settings, "test", cache_dir)
        validation = _rows(settings, "validation", cache_dir)
        numbers = _class_numbers(train, [*test, *validation] if settings.unseen_classes else [])
        _check_sizes(settings, len(train), len(test), len(numbers))
        makes_types = not causal and "token_type_ids" in tokenizer.model_input_names
        encode = _encode_for_decoder if causal else _encode

        def examples(rows: list[_Row]) -> Examples:
            labels = [_number(row, numbers) for row in rows]
            tokens_NxT, types_NxT = encode(rows, enc, settings.length)
            return Examples(tokens_NxT, types_NxT * makes_types, np.array(labels, np.int32))

        made = {"train": examples(train), "test": examples(test)}
        if settings.validation:
            made["validation"] = examples(validation)
        return Task(
            settings=settings,
            classes=tuple(map(str, numbers)),
            train=made["train"],
            validation=made.get("validation"),
            test=made["test"],
            train_texts=[" ".join(filter(None, (row.text, row.pair))) for row in train],
            test_texts=[" ".join(filter(None, (row.text, row.pair))) for row in test],
            key=_key(settings, enc, makes_types),
            notes=(
                *_notes(settings, train, validation, test),
                *_unknown_words(settings, made, enc),
            ),
        )


def _unknown_words(
    settings: TaskSettings, made: dict[str, Examples], enc: Encoder
) -> Iterator[str]:
    """A sentence for each table with many words that the tokenizer does not know."""
    for split, examples in made.items():
        tokens_NxT = examples.tokens_NxT
        predictable, unknown = enc.count(tokens_NxT[~has(tokens_NxT, PADDING)])
        if unknown and not predictable:
            raise UserError(
                f"the tokenizer knows no word of `{split}`; give a model of their language and script."
            )
        if (share := unknown / max(1, unknown + predictable)) > USUAL_UNKNOWN:
            yield (
                f"end task {settings.name}: {share:.1%} of the tokens of `{split}` are words that the "
                "tokenizer does not know"
            )


@contextmanager
def _naming(settings: TaskSettings) -> Iterator[None]:
    """Says of which task the trouble is."""
    try:
        yield
    except UserError as error:
        raise UserError(f"End task {settings.name}: {error}") from error


def _check_apart(settings: TaskSettings) -> None:
    shared = tables.common(settings.train, settings.test)
    if shared is not None:
        raise UserError(
            f"`train` and `test` both read {shared}, so the score would be of what was learned by heart; "
            "give two."
        )


def _notes(
    settings: TaskSettings, train: list[_Row], validation: list[_Row], test: list[_Row]
) -> Iterator[str]:
    """Which rows are where they should not be."""
    pairs = (("test", test, "training", train), ("validation", validation, "training", train))
    for one, rows, other, others in (*pairs, ("validation", validation, "test", test)):
        there = {(row.text, row.pair) for row in others}
        shared = sum((row.text, row.pair) in there for row in rows)
        if shared:
            yield (
                f"end task {settings.name}: {shared:,} of {len(rows):,} {one} texts "
                f"({shared / len(rows):.0%}) are {other} texts too"
            )


def _rows(
    settings: TaskSettings, split: Literal["train", "test", "validation"], cache_dir: Path
) -> list[_Row]:
    table: Table | None = getattr(settings, split)
    if table is None:
        return []
    rows = [_row(settings, *found) for found in tables.rows(table, cache_dir)]
    if not rows:
        raise UserError(f"the table `{split}` has no rows; give it at least one.")
    return rows


def _row(settings: TaskSettings, where: str, values: dict[str, Any]) -> _Row:
    for setting in ("text", "pair", "label", "date"):
        column = getattr(settings, setting)
        if column is not None and column not in values:
            raise UserError(
                f"{where}, has no column {column!r}: it has {quoted(values)}; "
                f"set `{setting}` of this task."
            )
    pair = None if settings.pair is None else _text(values, settings.pair, where)
    text = _text(values, settings.text, where)
    if settings.date is not None:
        text = time_prefix(values[settings.date], settings.date, where) + text
    return _Row(where, text, pair, _label(values, settings.label, where))


def _text(values: dict[str, Any], column: str, where: str) -> str:
    text = checked_text(values[column], column, where).strip()
    if not text:
        raise UserError(f"{where}: column {column!r} is empty; fill it or drop the row.")
    return text


def _label(values: dict[str, Any], column: str, where: str) -> str | int:
    value = values[column]
    if isinstance(value, str | bytes):
        label = _text(values, column, where)
        if label.casefold() in MISSING:
            raise UserError(
                f"{where}: column {column!r} holds {label!r}, which programs write for a missing value; drop "
                "the row, or give the class another name."
            )
        return label
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise UserError(f"{where}: column {column!r} is empty; fill it or drop the row.")
    if isinstance(value, bool) or not isinstance(value, int):
        raise UserError(
            f"{where}: column {column!r} holds {type(value).__name__}, neither a text nor a whole number; "
            "write one of the two."
        )
    return value


def _class_numbers(train: Sequence[_Row], others: Sequence[_Row]) -> dict[str | int, int]:
    first = train[0]
    for row in [*train, *others]:
        if type(row.label) is not type(first.label):
            raise UserError(
                f"{row.where}: the label is {row.label!r}, but {first.label!r} in {first.where}; "
                "make all labels texts, or all whole numbers."
            )
    if len({row.label for row in train}) == 1:
        raise UserError(
            f"every training example has the label {first.label!r}; a classifier needs two classes."
        )
    labels = sorted({row.label for row in [*train, *others]})
    return {label: number for number, label in enumerate(labels)}


def _number(row: _Row, numbers: dict[str | int, int]) -> int:
    if row.label not in numbers:
        some = quoted(list(numbers)[:10]) + (" and others" if len(numbers) > 10 else "")
        raise UserError(
            f"{row.where}: no training example has the label {row.label!r}; they have {some}."
        )
    return numbers[row.label]


def _check_sizes(settings: TaskSettings, train: int, test: int, classes: int) -> None:
    if settings.sizes is None:
        return
    found = {"train": train, "test": test, "classes": classes}
    promised = asdict(settings.sizes)
    if found != promised:
        held, said = (
            ", ".join(f"{what}: {size}" for what, size in sizes.items())
            for sizes in (found, promised)
        )
        raise UserError(
            f"the tables hold {{{held}}}, but `sizes` promises {{{said}}}; mend one or the other."
        )


def _encode(rows: Sequence[_Row], enc: Encoder, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and token types, [N, T] each."""
    enc.backend.enable_truncation(length, strategy="longest_first")
    enc.backend.enable_padding(length=length, pad_id=enc.special.padding)
    tokens_NxT = np.empty((len(rows), length), np.int32)
    types_NxT = np.empty((len(rows), length), np.int32)
    for start in range(0, len(rows), BATCH_TEXTS):
        batch = rows[start : start + BATCH_TEXTS]
        inputs = [row.text if row.pair is None else (row.text, row.pair) for row in batch]
        for i, encoding in enumerate(enc.backend.encode_batch(inputs), start):
            tokens_NxT[i], types_NxT[i] = encoding.ids, encoding.type_ids
    return tokens_NxT, types_NxT


def _encode_for_decoder(
    rows: Sequence[_Row], enc: Encoder, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Token ids with roles, and token types, [N, T] each.

    What the tokenizer puts before a text, the text, and padding behind it.
    """
    first, padding = enc.special[0], enc.special.padding
    opening = [] if first is None else [first | GIVEN | OPENS]
    tokens_NxT = np.full((len(rows), length), padding | PADDING, np.int32)
    for start in range(0, len(rows), BATCH_TEXTS):
        batch = rows[start : start + BATCH_TEXTS]
        texts = [row.text if row.pair is None else f"{row.text}\n{row.pair}" for row in batch]
        found = enc.backend.encode_batch(texts, add_special_tokens=False)
        for i, (row, encoding) in enumerate(zip(batch, found, strict=True), start):
            tokens = opening + _cut(encoding, row, length - len(opening))
            tokens_NxT[i, : len(tokens)] = tokens
    return tokens_NxT, np.zeros_like(tokens_NxT)


def _cut(encoding: Encoding, row: _Row, room: int) -> list[int]:
    """The tokens that fit; of a pair the longer text is cut first."""
    ids = list(encoding.ids)
    if row.pair is None or len(ids) <= room:
        return ids[:room]
    first = sum(begin < len(row.text) for begin, _ in encoding.offsets)
    second = len(ids) - first
    kept = min(first, max(room - second, room - room // 2))
    return ids[:kept] + ids[first : first + room - kept]


def _key(settings: TaskSettings, enc: Encoder, makes_types: bool) -> str:
    content = [
        table and tables.fingerprint(table)
        for table in (settings.train, settings.test, settings.validation)
    ]
    numbers = {name: value for name, value in asdict(settings).items() if name not in NOT_HASHED}
    if settings.date is None:
        del numbers["date"]  # As if there were no such setting: what was measured before it stays.
    if settings.validation is None:
        del numbers["metric"]  # All are measured; this one would choose the epoch.
    parts = [FORMAT, numbers, content, enc.fingerprint, makes_types]
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
