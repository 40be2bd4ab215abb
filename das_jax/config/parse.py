"""YAML text and dotted overrides into trees whose every value knows where it was written."""

import re
import stat
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from das_jax.errors import UserError, shown
from das_jax.paths import unusable

COMMAND_LINE = "command line"

# Far more than any configuration needs, and little enough to be read in seconds.
MOST_BYTES = 1 << 18
MOST_VALUES = 100_000
DEEPEST = 32


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

    def fetch_flow_collection_start(self, token: type) -> None:
        if self.flow_level > DEEPEST:  # Looking ahead takes longer with every bracket.
            raise yaml.scanner.ScannerError(None, None, _TOO_DEEP, self.get_mark())
        super().fetch_flow_collection_start(token)


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

_COLLECTIONS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")
_TOO_DEEP = f"values stand more than {DEEPEST} deep in each other"
_PLAIN = "a value must be text, a number, true, false or null"


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
      UserError: malformed YAML, a tag that is no plain value, a key written twice, or more values, or
        deeper ones, than a configuration can have.
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
        values = _Values(loader, lambda line: origin or f"{name}:{line}")
        return values.convert(root, ())
    except RecursionError:
        raise UserError(f"{name}: {_TOO_DEEP}.") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}" if mark and not origin else name
        what = " ".join(filter(None, (error.context, error.problem)))
        raise UserError(f"{where}: this is not valid YAML: {what}.") from error
    finally:
        loader.dispose()


class _Values:
    """YAML's nodes as ours; an alias is written out, as often as it stands there."""

    def __init__(self, loader: _Loader, origin: Callable[[int], str]) -> None:
        self._loader = loader
        self._origin = origin
        self._count = 0

    def convert(self, node: yaml.Node, above: tuple[yaml.Node, ...]) -> Node:
        here = self._origin(node.start_mark.line + 1)
        if node in above:
            raise UserError(f"{here}: an alias stands inside the value that it repeats.")
        if len(above) > DEEPEST:
            raise UserError(f"{here}: {_TOO_DEEP}.")
        self._count += 1
        if self._count > MOST_VALUES:
            raise UserError(
                f"{here}: with all that its aliases repeat, this is more than {MOST_VALUES:,} values."
            )
        above = (*above, node)
        match node:
            case yaml.CollectionNode() if node.tag not in _COLLECTIONS:
                raise UserError(f"{here}: {_PLAIN}, a list of them or a mapping to them.")
            case yaml.MappingNode():
                return Node(self._mapping(node, above), here)
            case yaml.SequenceNode():
                return Node([self.convert(part, above) for part in node.value], here)
            case _:
                return Node(self._scalar(node, here), here)

    def _mapping(self, node: yaml.MappingNode, above: tuple[yaml.Node, ...]) -> dict[str, Node]:
        children: dict[str, Node] = {}
        for key_node, value_node in node.value:
            # A key's line is what a reader looks for; its value may start further down.
            line = self._origin(key_node.start_mark.line + 1)
            if not isinstance(key_node, yaml.ScalarNode):
                raise UserError(f"{line}: a key must be a plain word.")
            key = _whole(key_node.value, line)
            if key in children:
                raise UserError(
                    f"{line}: the key {shown(key)} was given before, at {children[key].origin}; "
                    "keep one of the two."
                )
            children[key] = Node(self.convert(value_node, above).value, line)
        return children

    def _scalar(self, node: yaml.Node, here: str) -> str | int | float | bool | None:
        try:
            value = self._loader.construct_object(node)
        except (ValueError, KeyError, AttributeError):
            # `!!int x`, or a number of more digits than Python reads.
            raise UserError(f"{here}: {shown(node.value)} cannot be read; {_PLAIN}.") from None
        if isinstance(value, str):
            return _whole(value, here)
        if not isinstance(value, int | float | None):
            raise UserError(f"{here}: {_PLAIN}.")
        return value


def _whole(text: str, here: str) -> str:
    """Text with the halves of a character joined, as JSON writes those that need more than 16 bits."""
    try:
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise UserError(f"{here}: {shown(text)} holds half a character.") from None


def parse_file(path: Path) -> Node:
    """Reads a configuration file.

    Raises:
      UserError: the file is missing, unreadable, too large, malformed, or no mapping of keys to values.
    """
    if reason := unusable(str(path)):
        raise UserError(f"The path of the configuration file, {shown(str(path))}, {reason}.")
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode) and not stat.S_ISDIR(facts.st_mode):
            # It may have no end, or never a beginning.
            raise UserError(f"{path} is no ordinary file; save the configuration in one.")
        if facts.st_size > MOST_BYTES:
            raise UserError(f"{path} has {facts.st_size:,} bytes; that is no configuration file.")
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
      UserError: an argument of another form, a value that is malformed YAML, or one argument that would undo
        another.
    """
    root = Node({}, COMMAND_LINE)
    given: dict[tuple[str, ...], str] = {}
    for override in overrides:
        key, equals, text = override.removeprefix("--").partition("=")
        names = tuple(key.split("."))
        written = shown(override)
        if not equals or not all(names):
            raise UserError(
                f"{COMMAND_LINE}: {written} is not an override; "
                "write --KEY=VALUE, for example --training.steps=100."
            )
        if len(names) > DEEPEST:
            raise UserError(f"{COMMAND_LINE}: {written}: {_TOO_DEEP}.")
        for other, its_text in given.items():
            if len(other) > len(names) and other[: len(names)] == names:
                raise UserError(
                    f"{COMMAND_LINE}: {written} would undo {its_text}, which is given before it; "
                    "give it first, or give only one of the two."
                )
        given[names] = written
        value = parse_yaml(text, f"{COMMAND_LINE}: {written}", COMMAND_LINE)
        root = _put(root, names, value, written)
    return root


def _put(node: Node, names: Sequence[str], value: Node, override: str) -> Node:
    """The tree with a value in it."""
    if not names:
        return value
    name, *below = names
    match node.value:
        case list() as items:
            if name not in map(str, range(len(items))):
                raise UserError(
                    f"{COMMAND_LINE}: {override} is given after a list of {len(items)} items, which are "
                    "counted from 0."
                )
            i = int(name)
            new = _put(items[i], below, value, override)
            return Node([*items[:i], new, *items[i + 1 :]], COMMAND_LINE)
        case dict() as children:
            old = children.get(name, Node({}, COMMAND_LINE))
            return Node({**children, name: _put(old, below, value, override)}, COMMAND_LINE)
        case None:
            return _put(Node({}, COMMAND_LINE), names, value, override)
        case scalar:
            raise UserError(
                f"{COMMAND_LINE}: {override} is given after {scalar!r} for the same setting; "
                "give only one of the two."
            )
