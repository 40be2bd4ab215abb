"""YAML text and dotted overrides into trees whose every value knows where it was written."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from das_jax.errors import UserError

COMMAND_LINE = "command line"


@dataclass(frozen=True)
class Node:
    """A value and where it was written: `FILE:LINE`, `preset NAME` or `command line`."""

    value: "dict[str, Node] | list[Node] | str | int | float | bool | None"
    origin: str

    def plain(self) -> Any:
        """The value alone, as JSON would hold it."""
        match self.value:
            case dict():
                return {name: node.plain() for name, node in self.value.items()}
            case list():
                return [node.plain() for node in self.value]
            case _:
                return self.value

    def names(self) -> list[str]:
        """The keys of a mapping."""
        return list(self.value) if isinstance(self.value, dict) else []

    def child(self, name: str | int) -> "Node | None":
        """The value below, by key or by position."""
        match self.value, name:
            case dict(), str():
                return self.value.get(name)
            case list(), int() if 0 <= name < len(self.value):
                return self.value[name]
            case _:
                return None


class _Loader(yaml.SafeLoader):
    """YAML 1.2's scalars: 1e-4 is a number; `on`, `no`, 2020-01-01 and 1:30 are text; 010 is ten."""


_Loader.yaml_implicit_resolvers = {}
_FLOAT = re.compile(r"[-+]?(\.\d+|\d+(_\d+)*(\.\d*)?)([eE][-+]?\d+)?$")
for _tag, _pattern, _first in (
    ("null", re.compile(r"(~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("bool", re.compile(r"(true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    ("int", re.compile(r"[-+]?\d+(_\d+)*$"), list("-+0123456789")),
    ("float", _FLOAT, list("-+.0123456789")),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, _first)
_Loader.add_constructor("tag:yaml.org,2002:int", lambda _, node: int(node.value))
_Loader.add_constructor("tag:yaml.org,2002:float", lambda _, node: float(node.value))


class _Dumper(yaml.SafeDumper):
    """Quotes what either YAML version would not read back as text."""


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def dump_yaml(value: Any) -> str:
    """The YAML that `parse_yaml` reads back as the same value."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def parse_yaml(text: str, name: str, origin: str | None = None) -> Node:
    """Reads one YAML document; nothing in it is executed.

    Args:
      text: the document.
      name: what errors call it, usually the file's path.
      origin: where its values come from; `NAME:LINE` when absent.

    Raises:
      UserError: malformed YAML, a tag that is no plain value, or a key written twice.
    """
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UserError(f"{name}:{line}: this is not valid YAML: {error.reason}.") from error
    try:
        root = loader.get_single_node()
        if root is None:
            return Node(None, origin or name)
        return _convert(loader, root, lambda line: origin or f"{name}:{line}", ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}" if mark and not origin else name
        what = " ".join(filter(None, (error.context, error.problem)))
        raise UserError(f"{where}: this is not valid YAML: {what}.") from error
    finally:
        loader.dispose()


def _convert(
    loader: _Loader, node: yaml.Node, origin: Callable[[int], str], above: tuple[yaml.Node, ...]
) -> Node:
    here = origin(node.start_mark.line + 1)
    if node in above:
        raise UserError(f"{here}: an alias stands inside the value that it repeats.")
    above = (*above, node)
    match node:
        case yaml.MappingNode():
            children: dict[str, Node] = {}
            for key_node, value_node in node.value:
                # A key's line is what a reader looks for; its value may start further down.
                line = origin(key_node.start_mark.line + 1)
                if not isinstance(key_node, yaml.ScalarNode):
                    raise UserError(f"{line}: a key must be a plain word.")
                key = key_node.value
                if key in children:
                    raise UserError(
                        f"{line}: the key {key} was given before, at {children[key].origin}; "
                        "keep one of the two."
                    )
                children[key] = Node(_convert(loader, value_node, origin, above).value, line)
            return Node(children, here)
        case yaml.SequenceNode():
            return Node([_convert(loader, part, origin, above) for part in node.value], here)
        case _:
            value = loader.construct_object(node)
            if not isinstance(value, str | int | float | bool | None):
                raise UserError(f"{here}: a value must be text, a number, true, false or null.")
            return Node(value, here)


def parse_file(path: Path) -> Node:
    """Reads a configuration file.

    Raises:
      UserError: the file is missing, unreadable, malformed, or no mapping of keys to values.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = sorted(
            str(file) for file in (*path.parent.glob("*.yaml"), *Path("configs").glob("*.yaml"))
        )
        hint = f"; there is {', '.join(dict.fromkeys(near))}" if near else ""
        raise UserError(f"The configuration file {path} does not exist{hint}.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start} is not UTF-8 text.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    root = parse_yaml(text, str(path))
    if root.value is None:
        return Node({}, str(path))
    if not isinstance(root.value, dict):
        raise UserError(f"{root.origin}: a configuration is a mapping of keys to values.")
    return root


def parse_overrides(overrides: Iterable[str]) -> Node:
    """Reads `--a.b=VALUE` arguments, VALUE being YAML; the last of two for the same key counts.

    Raises:
      UserError: an argument of another form, or a value that is malformed YAML.
    """
    root: dict[str, Node] = {}
    for override in overrides:
        key, equals, text = override.removeprefix("--").partition("=")
        names = key.split(".")
        if not equals or not all(names):
            raise UserError(
                f"{COMMAND_LINE}: {override} is not an override; "
                "write --KEY=VALUE, for example --training.steps=100."
            )
        value = parse_yaml(text, f"{COMMAND_LINE}: {override}", COMMAND_LINE)
        _put(root, names, value)
    return Node(root, COMMAND_LINE)


def _put(group: dict[str, Node], names: Sequence[str], value: Node) -> None:
    for name in names[:-1]:
        inner = group.get(name)
        if inner is None or not isinstance(inner.value, dict):
            inner = group[name] = Node({}, COMMAND_LINE)
        group = inner.value  # type: ignore[assignment]
    group[names[-1]] = value
