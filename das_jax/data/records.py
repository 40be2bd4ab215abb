"""Documents that are records with fields: a text, perhaps a date, perhaps an id."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, assert_never

from das_jax.data import files, hubs
from das_jax.data.settings import (
    HuggingFaceSource,
    JSONLSource,
    ParquetSource,
    RecordSource,
    TFDSSource,
)
from das_jax.data.time_prefix import time_prefix
from das_jax.errors import UserError


class Document(NamedTuple):
    """A record's text.

    Attributes:
        where: Its place, for error messages: `papers.jsonl, line 3`.
        text: The text, without its time.
        prefix: What says its time; empty if it has none, or none is asked for.
        id: What the text is called in every snapshot; empty if no id is asked for.
    """

    where: str
    text: str
    prefix: str
    id: str


def documents(source: RecordSource, id_field: str | None = None) -> Iterator[Document]:
    """Reads the documents of a source one after the other, in constant memory.

    Args:
        source: Where the records are.
        id_field: The field with a document's id, if it is wanted.

    Raises:
        UserError: The source cannot be read, or a record lacks a field or holds something else in it.
    """
    wanted = {"field": source.field, "date": source.date, "id": id_field}
    fields = {setting: field for setting, field in wanted.items() if field is not None}
    for where, record in _records(source, fields):
        text = files.checked_text(record[source.field], source.field, where)
        prefix = time_prefix(record[source.date], source.date, where) if source.date else ""
        yield Document(
            where, text, prefix, _id(record[id_field], id_field, where) if id_field else ""
        )


def _records(
    source: RecordSource, fields: Mapping[str, str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    match source:
        case JSONLSource():
            return files.jsonl(source.path, fields)
        case ParquetSource():
            return files.parquet(source.path, fields)
        case TFDSSource():
            return hubs.tfds_fields(source.name, source.split, fields, source.data_dir)
        case HuggingFaceSource():
            return hubs.huggingface_fields(source.name, source.config, source.split, fields)
        case _:
            assert_never(source)


def _id(value: Any, field: str, where: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if value is None or value in ("", b""):
        raise UserError(f"{where}: field {field!r} is empty; give every document its id.")
    return files.checked_text(value, field, where)
