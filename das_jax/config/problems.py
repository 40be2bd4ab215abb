"""What pydantic found wrong, as sentences for the one who wrote the file."""

import difflib
import json
from typing import Literal, get_args, get_origin

import pydantic
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from das_jax.config.fields import describe, expected, field_at, fields, group_of, tag_name, tag_of
from das_jax.config.parse import Node
from das_jax.errors import shown
from das_jax.settings import UNFIT

Path = tuple[str | int, ...]


def problems(error: pydantic.ValidationError, tree: Node, file: str) -> list[str]:
    """One sentence for each mistake: where, which key, what is wrong, and what would be right.

    Args:
      error: of `Config`.
      tree: what was validated.
      file: where a missing key belongs when nothing around it was written either.
    """
    details = error.errors(include_url=False)
    places = [_path(detail, tree) for detail in details]
    found: dict[Path, str] = {}
    for detail, path in zip(details, places, strict=True):
        # A list is called too short when one of its items is wrong, and a union complains once per member.
        spurious = detail["type"] == "too_short" and any(
            other[: len(path)] == path and other != path for other in places
        )
        if (
            detail["type"] == UNFIT
        ):  # It brings its own words, which say more than what a type expects.
            found[path] = _unfit(path, tree, file, detail["ctx"]["reason"])
        elif not spurious:
            found.setdefault(path, _sentence(path, tree, file))
    return list(found.values())


def wrong_value(key: str, info: FieldInfo, node: Node) -> str:
    """The sentence for a value of the wrong type or out of range."""
    value = shown(json.dumps(node.plain(), ensure_ascii=False))
    end = "."
    if get_origin(info.annotation) is Literal:
        near = difflib.get_close_matches(
            str(node.value), list(map(str, get_args(info.annotation))), n=1
        )
        end = f"; did you mean {near[0]}?" if near else "."
    elif info.annotation is str and isinstance(node.value, int | float):
        end = "; write it in quotes."
    return f"{node.origin}: {key} must be {expected(info)}, got {value}{end}"


def _unfit(path: Path, tree: Node, file: str, reason: str) -> str:
    node = _node(tree, path)
    text = f" ({shown(node.value)})" if node and isinstance(node.value, str) and node.value else ""
    return f"{node.origin if node else file}: {_key(path)}{text} {reason}."


def _key(path: Path) -> str:
    return ".".join(shown(str(name)) for name in path)


def _sentence(path: Path, tree: Node, file: str) -> str:
    key = _key(path)
    node = _node(tree, path)
    info = field_at(path, tree)
    if info is None:
        return _unknown_key(path, key, tree, file)
    if node is None:
        above = _node(tree, path[:-1])
        where = above.origin if above and len(path) > 1 else file
        return f"{where}: {key} is missing; it must be {expected(info)}."
    return wrong_value(key, info, node)


def _unknown_key(path: Path, key: str, tree: Node, file: str) -> str:
    node, above = _node(tree, path), _node(tree, path[:-1])
    parent = field_at(path[:-1], tree)
    tag = tag_of(parent, above) if parent else None
    group = group_of(parent, tag) if parent else None
    prefix, name = "".join(f"{above}." for above in map(str, path[:-1])), str(path[-1])
    siblings = list(fields(group)) if group else []
    near = [prefix + sibling for sibling in difflib.get_close_matches(name, siblings, n=1)]
    # The right name in the wrong place; list items have no one place to name.
    near += [
        s.key for s in describe() if s.key.split(".")[-1] == name and ".N." not in s.key and not tag
    ]
    if "." in name and field_at((*path[:-1], *name.split(".")), tree):
        hint = f"in a file, write {name.replace('.', ': {')}: ...{'}' * name.count('.')}."
    elif near:
        hint = f"did you mean {near[0]}?"
    else:
        hint = f"the settings there are {', '.join(prefix + sibling for sibling in siblings)}."
    condition = f" with {prefix}{tag_name(parent)}={tag}" if parent and tag else ""
    return f"{node.origin if node else file}: {key} is no setting{condition}; {hint}"


def _path(detail: ErrorDetails, tree: Node) -> Path:
    """Pydantic's location without the names of union members, which it puts between the keys."""
    location = detail["loc"]
    path: Path = ()
    node: Node | None = tree
    for i, name in enumerate(location):
        child = node.child(name) if node else None
        is_missing = detail["type"] == "missing" and i == len(location) - 1
        if child is not None or is_missing:
            path = (*path, name)
            node = child
    if detail["type"] in ("union_tag_not_found", "union_tag_invalid"):
        path = (*path, detail["ctx"]["discriminator"].strip("'"))
    return path


def _node(tree: Node, path: Path) -> Node | None:
    node: Node | None = tree
    for name in path:
        node = node.child(name) if node else None
    return node
