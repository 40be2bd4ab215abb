"""Layers into one configuration: defaults, preset, file, files laid over it, command line."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import pydantic
from pydantic.fields import FieldInfo

from das_jax.config.check import check
from das_jax.config.fields import ROOT, UNKNOWN, fields, group_of, item, tag_of
from das_jax.config.parse import Node, parse_file, parse_overrides, parse_yaml
from das_jax.config.problems import problems, wrong_value
from das_jax.config.schema import Config
from das_jax.errors import UserError, shown

_ADAPTER = pydantic.TypeAdapter(Config)


@dataclass(frozen=True)
class Resolved:
    """A configuration, and for each of its keys where the value came from.

    Attributes:
      config: the validated configuration.
      origins: by dotted key, in the schema's order: `default`, `preset NAME`, `FILE:LINE` or `command line`.
    """

    config: Config
    origins: Mapping[str, str]


def load_config(
    path: str | Path, overrides: Sequence[str] = (), overlays: Sequence[Path | Node] = ()
) -> Resolved:
    """Reads a YAML file on top of its preset, others on top of it, and the command line on top of all.

    Args:
      path: the YAML file.
      overrides: `--a.b=VALUE` arguments; a number addresses an item of a list, as in `--domains.0.steps=5`.
      overlays: further YAML files, or what was read of some, of the settings that they change.

    Raises:
      UserError: naming file, line and key, one line for each mistake.
    """
    file = parse_file(Path(path))
    over = [each if isinstance(each, Node) else parse_file(each) for each in overlays]
    layers = [file, *over, parse_overrides(overrides)]
    tree = _merge([_preset(layers), *layers], ROOT, "")
    try:
        # JSON and not Python objects: in strict mode it takes lists for tuples but no "5" for 5.
        config = _ADAPTER.validate_json(json.dumps(tree.plain()), strict=True)
    except pydantic.ValidationError as error:
        raise UserError("\n".join(problems(error, tree, str(path)))) from None
    origins = {key: _origin(tree, key.split(".")) for key in leaves(config)}
    check(config, lambda key: _origin(tree, key.split(".")))
    return Resolved(config, origins)


def leaves(config: Any, prefix: str = "") -> dict[str, Any]:
    """Every value of a configuration by dotted key, in the schema's order."""
    if dataclasses.is_dataclass(config):
        children = [
            (field.name, getattr(config, field.name)) for field in dataclasses.fields(config)
        ]
    elif isinstance(config, tuple):
        children = [(str(i), child) for i, child in enumerate(config)]
    else:
        return {prefix.removesuffix("."): config}
    found: dict[str, Any] = {}
    for name, child in children:
        found |= leaves(child, f"{prefix}{name}.")
    return found


def layer_of(node: Node, above: str = "") -> Node:
    """A mapping whose keys may be dotted, as `{training.steps: 100}`, as a mapping of mappings: an overlay.

    Raises:
      UserError: a key is given twice.
    """
    layer: dict[str, Node] = {}
    for key, value in node.value.items() if isinstance(node.value, dict) else ():
        name, _, below = key.partition(".")
        child = Node({below: value}, value.origin) if below else value
        if isinstance(child.value, dict):
            child = layer_of(child, f"{above}{name}.")
        if name in layer:
            child = _joined(layer[name], child, f"{above}{name}")
        layer[name] = child
    return Node(layer, node.origin)


def _joined(one: Node, other: Node, key: str) -> Node:
    """Two mappings as one."""
    if not isinstance(one.value, dict) or not isinstance(other.value, dict):
        raise UserError(
            f"{other.origin}: {key} was given before, at {one.origin}; keep one of the two."
        )
    joined = dict(one.value)
    for name, child in other.value.items():
        joined[name] = _joined(joined[name], child, f"{key}.{name}") if name in joined else child
    return Node(joined, one.origin)


def _preset(layers: Sequence[Node]) -> Node:
    info = fields(Config)["preset"]
    chosen = next((found for layer in reversed(layers) if (found := layer.child("preset"))), None)
    names = sorted(
        entry.name.removesuffix(".yaml")
        for entry in _presets().iterdir()
        if entry.name.endswith(".yaml")
    )
    if chosen and chosen.value not in names:
        raise UserError(wrong_value("preset", info, chosen))
    name = chosen.value if chosen else info.default
    return parse_yaml(
        (_presets() / f"{name}.yaml").read_text(encoding="utf-8"),
        f"preset {name}",
        f"preset {name}",
    )


def _presets() -> Any:
    return resources.files("das_jax") / "presets"


def _origin(tree: Node, names: Sequence[str]) -> str:
    node: Node | None = tree
    for name in names:
        assert node is not None
        node = node.child(int(name) if isinstance(node.value, list) else name)
        if node is None:
            return "default"
    assert node is not None
    return node.origin


def _merge(layers: list[Node], info: FieldInfo, key: str) -> Node:
    """Later layers win; mappings are merged key by key, lists only by the command line's item numbers."""
    plain = [i for i, layer in enumerate(layers) if not isinstance(layer.value, dict)]
    layers = layers[max(plain, default=0) :]
    if len(layers) == 1:
        return layers[0]
    if isinstance(layers[0].value, list):
        return _merge_items(layers[0].value, layers[1:], info, key)
    if layers[0].value is not None and plain:
        name = key.removesuffix(".")
        part = f"{key}{layers[1].names()[0]}" if layers[1].names() else name
        raise UserError(
            f"{layers[1].origin}: {part} cannot be set: {name} is {shown(str(layers[0].value))} "
            f"({layers[0].origin}), no group of settings."
        )
    layers, choice = _same_choice(layers, info)
    group = group_of(info, choice)
    known = fields(group) if group else {}
    merged: dict[str, Node] = {}
    for name in dict.fromkeys(name for layer in layers for name in layer.names()):
        below = [child for layer in layers if (child := layer.child(name))]
        merged[name] = _merge(below, known.get(name, UNKNOWN), f"{key}{name}.")
    return Node(merged, layers[-1].origin)


def _merge_items(items: list[Node], layers: list[Node], info: FieldInfo, key: str) -> Node:
    for layer in layers:
        for name in layer.names():
            if name not in map(
                str, range(len(items))
            ):  # 00 is none, nor is any other digit of Unicode.
                raise UserError(
                    f"{layer.origin}: {key}{shown(name)} does not exist; {key.removesuffix('.')} has "
                    f"{len(items)} items, counted from {key}0."
                )
    merged = []
    for i, old in enumerate(items):
        new = [child for layer in layers if (child := layer.child(str(i)))]
        merged.append(_merge([old, *new], item(info) or UNKNOWN, f"{key}{i}."))
    return Node(merged, layers[-1].origin)


def _same_choice(layers: list[Node], info: FieldInfo) -> tuple[list[Node], Any]:
    """The layers that speak of the choice made last, and it: settings of `das` mean nothing to `naive`."""
    choices: list[Any] = []
    for layer in layers:
        choices.append(tag_of(info, layer) or (choices[-1] if choices else None))
    last = choices[-1]
    return [layer for layer, choice in zip(layers, choices, strict=True) if choice == last], last
