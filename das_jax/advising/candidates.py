"""What is tried: systems from a file, and the comparisons that are written from them."""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import pydantic
from pydantic import Field, PositiveFloat

from das_jax.comparing.cells import Point
from das_jax.comparing.file import VARY, WITH
from das_jax.config.load import layer_of
from das_jax.config.parse import Node, dump_yaml, parse_file, parse_yaml
from das_jax.config.schema import Config
from das_jax.config.show import to_yaml
from das_jax.errors import UserError
from das_jax.files import write_text
from das_jax.settings import Name, settings

RATE = "training.learning_rate"
CONFIGURED = "configured"
"""The system that is the configuration as it stands."""

Settings = dict[str, Any]


@settings
class CandidatesSettings:
    """All keys of the file."""

    rates: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)]
    """Multiples of the configuration's learning rate that every system is tried with."""
    systems: Annotated[dict[Name, Settings], Field(min_length=1)]
    """As in the file of a comparison: settings by dotted keys, overlays in `with`, a grid in `vary`."""


_ADAPTER = pydantic.TypeAdapter(CandidatesSettings)


@dataclass(frozen=True)
class Candidates:
    """What is tried.

    Attributes:
      systems: settings by dotted keys, with a grid under `vary`.
      rates: the learning rates.
    """

    systems: Mapping[str, Settings]
    rates: tuple[float, ...]

    def of_all(self) -> dict[str, Any]:
        """Every system over its grid and the learning rates, as the file of a comparison has it."""
        return {"systems": dict(self.systems), "vary": {RATE: list(self.rates)}}

    def of_some(self, points: Sequence[Point]) -> dict[str, Any]:
        """These points alone, each as a system of its own."""
        return {"systems": {name_of(point): self.settings_of(point) for point in points}}

    def settings_of(self, point: Point) -> Settings:
        """The settings of a point on top of the configuration, by dotted keys."""
        own = {key: value for key, value in self.systems[point.system].items() if key != VARY}
        return own | dict(point.values)


def read_candidates(path: Path | None, config: Config) -> Candidates:
    """Reads what is tried, and adds the configuration's own method if it is another than plain training.

    Args:
      path: the file; None for ours.
      config: to which it is applied.

    Raises:
      UserError: the file cannot be read, or a key is unknown, missing or of another type.
    """
    if path is None:
        text = (resources.files("das_jax") / "advising" / "candidates.yaml").read_text("utf-8")
        tree, directory = parse_yaml(text, "candidates.yaml"), Path()
    else:
        tree, directory = parse_file(path), path.parent
    try:
        found = _ADAPTER.validate_json(json.dumps(tree.plain()), strict=True)
    except pydantic.ValidationError as error:
        detail = error.errors(include_url=False)[0]
        key = ".".join(map(str, detail["loc"]))
        message = detail["msg"][0].lower() + detail["msg"][1:]
        raise UserError(
            f"{path or 'candidates.yaml'}: {key}: {message}; a file of candidates has `rates` and `systems`, "
            "as docs/comparing.md shows"
        ) from None
    systems = {name: _with_absolute(each, directory) for name, each in found.systems.items()}
    if config.method.name != "naive":
        systems = {CONFIGURED: {}, **systems}
    rates = sorted({float(f"{rate * config.training.learning_rate:.3g}") for rate in found.rates})
    return Candidates(systems, tuple(rates))


def _with_absolute(settings: Settings, directory: Path) -> Settings:
    """Overlays by paths that mean the same from anywhere."""
    if WITH not in settings:
        return settings
    files = settings[WITH] if isinstance(settings[WITH], list) else [settings[WITH]]
    return {
        **settings,
        WITH: [str((directory / Path(each).expanduser()).absolute()) for each in files],
    }


def name_of(point: Point) -> str:
    """A point's name as a system of its own."""
    chosen = re.sub(r"[^A-Za-z0-9_.]+", "-", point.name).strip("-")
    return f"{point.system}-{chosen}"[:100]


def overlay(settings: Settings) -> dict[str, Any]:
    """The same settings as a file that `--with` takes; overlays that they name are written out."""
    own = {key: value for key, value in settings.items() if key != WITH}
    merged: dict[str, Any] = {}
    for path in settings.get(WITH, ()):
        merged = _merged(merged, parse_file(Path(path)).plain())
    layer = layer_of(parse_yaml(dump_yaml(own), "candidates")) if own else Node({}, "candidates")
    return _merged(merged, layer.plain())


def _merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    found = dict(one)
    for key, value in other.items():
        both = isinstance(found.get(key), dict) and isinstance(value, dict)
        found[key] = _merged(found[key], value) if both else value
    return found


def write_configuration(config: Config, validation: float, path: Path) -> Config:
    """Writes what is equal for all probes: the configuration, with text to choose on, without seeds.

    Returns:
      What was written.
    """
    if not config.data.validation:
        config = dataclasses.replace(
            config, data=dataclasses.replace(config.data, validation=validation)
        )
    config = dataclasses.replace(config, seeds=None)
    write_text(path, to_yaml(config))
    return config


def write_comparison(
    path: Path, config: Path, systems: Mapping[str, Any], steps: Sequence[int], seeds: Sequence[int]
) -> None:
    """Writes the file of a comparison, which `das-jax compare` could run as well.

    Args:
      path: of the file; its cells go into the directory of the same name beside it.
      config: what is equal.
      systems: what `Candidates` gives.
      steps: of every domain.
      seeds: of every point.
    """
    settings = {f"domains.{number}.steps": count for number, count in enumerate(steps)}
    written = {
        "config": str(config.absolute()),
        "output_dir": str(path.with_suffix("").absolute()),
        "seeds": list(seeds),
        "keep": "scores",
        "settings": settings,
        **systems,
    }
    write_text(path, dump_yaml(written))
