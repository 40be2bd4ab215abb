"""A resolved configuration for people and for files."""

import dataclasses
from typing import Any

from rich.table import Table
from rich.text import Text

from das_jax.config.fields import describe
from das_jax.config.load import Resolved, leaves
from das_jax.config.parse import dump_yaml
from das_jax.config.schema import Config


def render(resolved: Resolved) -> Table:
    """A table of every key, its value and where the value came from."""
    table = Table("key", "value", "where from", highlight=False)
    for key, value in leaves(resolved.config).items():
        table.add_row(*map(Text, (key, _text(value), resolved.origins[key])))
    return table


def render_settings() -> Table:
    """A table of every key there is, its type, its default and what it means."""
    table = Table("key", "type", "default", "meaning", highlight=False)
    for setting in describe():
        condition = f" (with {setting.only_if})" if setting.only_if else ""
        meaning = f"{setting.doc}{condition}".strip()
        table.add_row(*map(Text, (setting.key, setting.type, setting.default, meaning)))
    return table


def to_yaml(config: Config) -> str:
    """The YAML file that holds every setting and loads as an equal configuration."""
    return dump_yaml(_plain(dataclasses.asdict(config)))


def difference(old: Config, new: Config) -> list[tuple[str, Any, Any]]:
    """The dotted keys whose values differ, with both values; None stands for a key that is not there."""
    before, after = leaves(old), leaves(new)
    return [
        (key, before.get(key), after.get(key))
        for key in dict.fromkeys([*before, *after])
        if before.get(key) != after.get(key)
    ]


def _text(value: Any) -> str:
    return dump_yaml([value]).removeprefix("- ").rstrip("\n")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(child) for name, child in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(child) for child in value]
    return value
