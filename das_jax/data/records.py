"""Documents that are records with fields: a text, perhaps a date, perhaps an id; or a conversation."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, assert_never

from das_jax.data import files, hubs
from das_jax.data.settings import (
    CSVSource,
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


Message = Mapping[str, Any]
"""Who speaks, `role`, and what is said, `content`; more, if the chat template asks for more."""


class Conversation(NamedTuple):
    """Messages, the last ones or others of the assistant's.

    Attributes:
        where: Its place, for error messages: `answers.jsonl, line 3`.
        messages: At least one is the assistant's.
    """

    where: str
    messages: list[Message]


ASSISTANT = "assistant"
"""The role whose messages are learned."""


def conversations(source: RecordSource) -> Iterator[Conversation]:
    """Reads the conversations of a source one after the other, in constant memory.

    Args:
        source: Where the records are; it has `messages`, or `prompt` and `response`.

    Raises:
        UserError: The source cannot be read, a record lacks a field or holds something else in it, a prompt
            or a response is blank, or the assistant says nothing.
    """
    wanted = {name: getattr(source, name) for name in ("prompt", "response", "messages")}
    fields = {setting: field for setting, field in wanted.items() if field is not None}
    for where, record in _records(source, fields):
        if source.messages is not None:
            messages = _messages(record[source.messages], source.messages, where)
        else:
            messages = [
                {"role": role, "content": _said(record[fields[setting]], fields[setting], where)}
                for role, setting in (("user", "prompt"), (ASSISTANT, "response"))
            ]
        yield Conversation(where, messages)


def _said(value: Any, field: str, where: str) -> str:
    text = files.checked_text(value, field, where)
    if not text.strip():
        raise UserError(f"{where}: field {field!r} is blank; mend or drop the record.")
    return text


def _messages(value: Any, field: str, where: str) -> list[Message]:
    if not isinstance(value, list) or not all(
        isinstance(each, dict) and isinstance(each.get("role"), str) for each in value
    ):
        raise UserError(
            f"{where}: field {field!r} is no list of objects with a `role`; mend or drop the record."
        )
    if not any(each["role"] == ASSISTANT for each in value):
        raise UserError(
            f"{where}: field {field!r} has no message of the role {ASSISTANT}, so that there is nothing to "
            "learn; mend or drop the record."
        )
    # Tables have every field in every object.
    return [{name: each[name] for name in each if each[name] is not None} for each in value]


def _records(
    source: RecordSource, fields: Mapping[str, str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    match source:
        case JSONLSource():
            return files.jsonl(source.path, fields)
        case CSVSource():
            found = files.csv_records(source.path, source.delimiter, source.quoting)
            return files.with_fields(found, fields)
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
