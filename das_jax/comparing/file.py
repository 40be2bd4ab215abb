"""The file of a comparison: what is equal, which systems there are, and what is varied."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from das_jax.config.check import check_seeds
from das_jax.config.load import layer_of
from das_jax.config.parse import Node, parse_file, parse_overrides
from das_jax.errors import UserError, shown
from das_jax.settings import Count, LocalPath, Name, Seed, settings

WITH, VARY = "with", "vary"
"""Keys of a system that are no settings of a run: its overlay files, and what is varied of it alone."""

Settings = dict[str, Any]
Grid = dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]]


@settings
class ComparisonSettings:
    """All keys of the file. Those without a mapping may be given on the command line, too."""

    config: LocalPath
    """What is equal: a run's configuration, its path relative to this file."""
    output_dir: LocalPath
    """Where cells and report go; a comparison that was killed goes on from what is there."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] | None = None
    """Of every system; the configuration's own when absent."""
    orders: Count | Annotated[tuple[tuple[Name, ...], ...], Field(min_length=1)] = 1
    """How many orders of the domains, the configuration's own first, or the orders themselves."""
    budget: Literal["steps", "flop"] = "steps"
    """What systems have in common: the steps, or the FLOPs that plain training needs for them."""
    keep: Literal["models", "scores"] = "models"
    """What is left of a finished cell: everything, or all but the weights."""
    settings: Settings = Field(default_factory=dict)
    """Settings on top of the configuration, for all systems."""
    systems: Annotated[dict[Name, Settings], Field(min_length=1)]
    """Settings of each, by dotted keys; `with` names overlay files, `vary` a grid of its own."""
    vary: Grid = Field(default_factory=dict)
    """Values of dotted keys that every system is tried with, unless it sets the key itself."""
    bounds: dict[Name, Settings] = Field(default_factory=dict)
    """Systems that are drawn beside the others and not ranked; they learn the first order alone."""
    reference: Name | None = None
    """The system that the others are compared with; the first when absent."""


MAPPINGS = ("settings", "systems", "vary", "bounds", "config")
"""Keys that only the file can give."""

_ADAPTER = pydantic.TypeAdapter(ComparisonSettings)


@dataclass(frozen=True)
class System:
    """What is compared.

    Attributes:
      name: what it is called.
      origin: where it stands.
      layers: of settings, on top of what is equal.
      grid: the values of every key that is varied, by its dotted name.
      bound: whether it only shows what is possible.
    """

    name: str
    origin: str
    layers: tuple[Node, ...]
    grid: dict[str, tuple[Node, ...]]
    bound: bool = False


@dataclass(frozen=True)
class Comparison:
    """A comparison as it was asked for.

    Attributes:
      path: of its file.
      settings: the validated keys.
      config: the configuration file of what is equal.
      common: the settings on top of it.
      systems: those to be ranked and, after them, the bounds.
      overrides: settings of the command line, on top of all.
    """

    path: Path
    settings: ComparisonSettings
    config: Path
    common: Node
    systems: tuple[System, ...]
    overrides: tuple[str, ...] = ()

    @property
    def output_dir(self) -> Path:
        return Path(self.settings.output_dir).expanduser()

    @property
    def reference(self) -> str:
        """The name of the system that the others are compared with."""
        return self.settings.reference or self.systems[0].name


def read_comparison(path: Path, overrides: Sequence[str] = ()) -> Comparison:
    """Reads the file of a comparison.

    Args:
      path: the YAML file.
      overrides: `--key=value` arguments: of keys of this file, or of the configuration that is equal for all.

    Raises:
      UserError: a key is unknown, missing or of another type; a file that is named cannot be read; a key is
        varied and set on the command line; the reference is no system; two seeds are one.
    """
    file = parse_file(path)
    own = [name for name in ComparisonSettings.__dataclass_fields__ if name not in MAPPINGS]
    of_file = [each for each in overrides if _key(each) in own]
    others = tuple(each for each in overrides if _key(each) not in own)
    tree = Node({**_children(file), **_children(parse_overrides(of_file))}, file.origin)
    try:
        found = _ADAPTER.validate_json(json.dumps(tree.plain()), strict=True)
    except pydantic.ValidationError as error:
        raise UserError("\n".join(_problems(error, tree))) from None
    varied = _grid(tree.child("vary"))
    systems = [
        _system(name, node, varied, path.parent, bound=group == "bounds")
        for group in ("systems", "bounds")
        for name, node in _children(tree.child(group)).items()
    ]
    _check(tree, systems, found.reference, others)
    seeds = tree.child("seeds")
    check_seeds(found.seeds or (), lambda _: tree.origin if seeds is None else seeds.origin)
    common = layer_of(tree.child("settings") or Node({}, str(path)))
    config = _beside(path.parent, found.config)
    return Comparison(path, found, config, common, tuple(systems), others)


def _system(
    name: str, node: Node, varied: dict[str, tuple[Node, ...]], directory: Path, *, bound: bool
) -> System:
    children = _children(node)
    files, own = children.pop(WITH, None), _grid(children.pop(VARY, None))
    paths = [] if files is None else files.plain()
    for each in paths if isinstance(paths, list) else [paths]:
        if not isinstance(each, str):
            raise UserError(f"{node.origin}: {name}.{WITH} must be a file or a list of files.")
    paths = paths if isinstance(paths, list) else [paths]
    overlays = [layer_of(parse_file(_beside(directory, each))) for each in paths]
    layer = layer_of(Node(children, node.origin))
    grid = {key: values for key, values in varied.items() if _at(layer, key) is None} | own
    return System(name, node.origin, (*overlays, layer), grid, bound)


def _check(
    tree: Node, systems: list[System], reference: str | None, others: tuple[str, ...]
) -> None:
    found: dict[str, str] = {}
    for system in systems:
        if system.name in found:
            raise UserError(
                f"{system.origin}: {system.name} is also a system ({found[system.name]}); give the bound "
                "another name."
            )
        found[system.name] = system.origin
        for override in others:
            key = override.removeprefix("--").partition("=")[0]
            if key in system.grid:
                raise UserError(
                    f"command line: {shown(override)} sets what {system.name} varies "
                    f"({system.grid[key][0].origin}); leave one of them out."
                )
    ranked = [system.name for system in systems if not system.bound]
    if reference is not None and reference not in ranked:
        node = tree.child("reference")
        raise UserError(
            f"{node.origin if node else tree.origin}: reference is {reference}, which is none of the systems "
            f"({', '.join(ranked)})."
        )


def _grid(node: Node | None) -> dict[str, tuple[Node, ...]]:
    grid = {}
    for key, values in _children(node).items():
        if not isinstance(values.value, list) or not values.value:
            raise UserError(
                f"{values.origin}: {shown(key)} is varied over {shown(str(values.plain()))}; give a list of "
                "values, such as [0.1, 0.2]."
            )
        grid[key] = tuple(values.value)
    return grid


def _problems(error: pydantic.ValidationError, tree: Node) -> list[str]:
    """A sentence for every mistake."""
    found = []
    for detail in error.errors(include_url=False):
        path = [str(part) for part in detail["loc"]]
        node, key = tree, list[str]()
        for part in path:
            child = node.child(int(part) if part.isdecimal() else part)
            if child is None:
                break
            node, key = child, [*key, part]
        name = ".".join(map(shown, key))
        if detail["type"] == "unexpected_keyword_argument":
            there = ", ".join(ComparisonSettings.__dataclass_fields__)
            found.append(
                f"{node.origin}: {name} is no setting of a comparison; these are {there}. Settings of runs "
                "belong under `settings`, or under a system."
            )
        elif detail["type"] in ("missing", "missing_argument"):
            found.append(f"{tree.origin}: {shown(path[-1])} is missing.")
        else:
            message = detail["msg"][0].lower() + detail["msg"][1:]
            found.append(
                f"{node.origin}: {name}: {message}, not {shown(json.dumps(node.plain()))}."
            )
    return list(dict.fromkeys(found))


def _children(node: Node | None) -> dict[str, Node]:
    return dict(node.value) if node is not None and isinstance(node.value, dict) else {}


def _at(layer: Node, key: str) -> Node | None:
    """The value of a dotted key in a layer."""
    node: Node | None = layer
    for name in key.split("."):
        node = node.child(name) if node is not None else None
    return node


def _key(override: str) -> str:
    return override.removeprefix("--").partition("=")[0].partition(".")[0]


def _beside(directory: Path, path: str) -> Path:
    """A path that a file in a directory names."""
    return directory / Path(path).expanduser()
