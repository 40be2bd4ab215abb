"""What settings there are: a walk over the schema."""

import types
import typing
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

from pydantic.fields import FieldInfo

from das_jax.config.parse import Node
from das_jax.config.schema import Config

ROOT = FieldInfo.from_annotation(Config)
UNKNOWN = FieldInfo.from_annotation(Any)

_SCALARS = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    type(None): "null",
}
_BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


class Setting(NamedTuple):
    """One key: its type and default in words, what it means, and the choice it depends on."""

    key: str
    type: str
    default: str
    doc: str
    only_if: str


def fields(group: type) -> dict[str, FieldInfo]:
    """The settings of a group, by name."""
    return group.__pydantic_fields__  # type: ignore[attr-defined]


def members(info: FieldInfo) -> list[FieldInfo]:
    """The members of a union, and of unions in it, or the type itself."""
    return [member for part in _parts(info) for member in members(part)] or [info]


def _parts(info: FieldInfo) -> list[FieldInfo]:
    if typing.get_origin(info.annotation) in (types.UnionType, typing.Union):
        return [FieldInfo.from_annotation(part) for part in typing.get_args(info.annotation)]
    return []


def groups(info: FieldInfo) -> list[type]:
    """The groups of settings among the members."""
    found = [part.annotation for part in members(info)]
    return [
        part for part in found if isinstance(part, type) and hasattr(part, "__pydantic_fields__")
    ]


def item(info: FieldInfo) -> FieldInfo | None:
    """What a list holds, also where it may be null; None when the setting is no list."""
    for part in members(info):
        if typing.get_origin(part.annotation) is tuple:
            return FieldInfo.from_annotation(typing.get_args(part.annotation)[0])
    return None


def tag_name(info: FieldInfo) -> str | None:
    """The key that says which of several groups is meant, as `name` in `method`."""
    tags = [part.discriminator for part in (info, *_parts(info))]  # A tagged union, or it or null.
    return next((tag for tag in tags if isinstance(tag, str)), None)


def tag_values(info: FieldInfo) -> dict[str, type]:
    """The groups of a tagged union by the value of the tag."""
    tag = tag_name(info)
    if tag is None:
        return {}
    return {
        value: group
        for group in groups(info)
        for value in typing.get_args(fields(group)[tag].annotation)
    }


def group_of(info: FieldInfo, tag: Any) -> type | None:
    """The group of settings meant, by the tag where there are several; None when there is none."""
    if tag_name(info):
        return tag_values(info).get(tag) if isinstance(tag, str) else None
    found = groups(info)
    return found[0] if found else None


def field_at(path: Sequence[str | int], tree: Node) -> FieldInfo | None:
    """The setting at a path; the tree's tags choose between groups. None when there is none."""
    info: FieldInfo | None = ROOT
    node: Node | None = tree
    for name in path:
        if info is None:
            return None
        info = item(info) if isinstance(name, int) else _field(info, name, node)
        node = node.child(name) if node else None
    return info


def _field(info: FieldInfo, name: str, node: Node | None) -> FieldInfo | None:
    if name == tag_name(info):
        return FieldInfo.from_annotation(Literal[*tag_values(info)])  # type: ignore[arg-type]
    group = group_of(info, tag_of(info, node))
    return fields(group).get(name) if group else None


def tag_of(info: FieldInfo, node: Node | None) -> Any:
    """The value of the tag in a tree; None without one."""
    tag = tag_name(info)
    child = node.child(tag) if node and tag else None
    return child.value if child else None


def expected(info: FieldInfo) -> str:
    """What a value must be, in words."""
    if tag_name(info):
        null = " or null" if type(None) in (part.annotation for part in members(info)) else ""
        return f"settings with {tag_name(info)} one of {', '.join(tag_values(info))}{null}"
    parts = members(info)
    if len(parts) > 1:
        return " or ".join(expected(part) for part in parts)
    annotation = info.annotation
    if item(info) is not None:
        return "a list, not empty" if _bound(info, "min_length") else "a list"
    if typing.get_origin(annotation) is Literal:
        values = [str(value) for value in typing.get_args(annotation)]
        return values[0] if len(values) == 1 else f"one of {', '.join(values)}"
    if groups(info):
        return "a group of settings"
    bounds = [
        f"{sign} {_bound(info, name):g}"
        for name, sign in _BOUNDS.items()
        if _bound(info, name) is not None
    ]
    if pattern := _bound(info, "pattern"):
        bounds.append(f"that matches {pattern}")
    return " ".join([_SCALARS[annotation], " and ".join(bounds)]).rstrip()  # type: ignore[index]


def _bound(info: FieldInfo, name: str) -> Any:
    return next((getattr(part, name) for part in info.metadata if hasattr(part, name)), None)


def describe() -> list[Setting]:
    """Every key there is; the items of a list are called N."""
    return list(_describe("", ROOT, ""))


def _describe(prefix: str, info: FieldInfo, only_if: str) -> Iterator[Setting]:
    tag = tag_name(info)
    if tag:
        choices = f"one of {', '.join(tag_values(info))}"
        yield Setting(f"{prefix}{tag}", choices, "required", info.description or "", only_if)
    for group in groups(info):
        for name, child in fields(group).items():
            if name == tag:
                continue
            condition = only_if
            if tag:
                (value,) = typing.get_args(fields(group)[tag].annotation)
                condition = f"{prefix}{tag}={value}"
            key = f"{prefix}{name}"
            inner = item(child)
            if inner is not None and groups(inner):
                yield from _describe(f"{key}.N.", inner, condition)
            elif groups(child):
                yield from _describe(f"{key}.", child, condition)
            else:
                default = "required" if child.is_required() else str(child.default)
                doc = " ".join((child.description or "").split())
                yield Setting(key, expected(child), default, doc, condition)
