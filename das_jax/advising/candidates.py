"""What is tried: systems from a file, and the comparisons that are written from them."""

import dataclasses
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
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
from das_jax.config.schema import OPTIMIZER_OPTIONS, SCHEDULE_OPTIONS, Config, TrainingSettings
from das_jax.config.show import to_yaml
from das_jax.data.streams import OWN, Stream
from das_jax.errors import UserError
from das_jax.files import write_text
from das_jax.methods.settings.policies import AveragingSettings, PoliciesSettings
from das_jax.settings import Name, settings

RATE, OWN_RATE = "training.learning_rate", "method.learning_rate"
CONFIGURED = "configured"
"""The system that is the configuration as it stands."""

Settings = dict[str, Any]


@settings
class CandidatesSettings:
    """All keys of the file."""

    rates: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)]
    """Multiples of its learning rate that every system is tried with: of `method.learning_rate` where that is
    set, else of the configuration's `training.learning_rate`."""
    systems: Annotated[dict[Name, Settings], Field(min_length=1)]
    """As in the file of a comparison: settings by dotted keys, overlays in `with`, a grid in `vary`."""


_ADAPTER = pydantic.TypeAdapter(CandidatesSettings)


@dataclass(frozen=True)
class Candidates:
    """What is tried.

    Attributes:
      systems: settings by dotted keys, with a grid under `vary`.
      rates: the values of `training.learning_rate`, for those that do not set it.
    """

    systems: Mapping[str, Settings]
    rates: tuple[float, ...]

    def of_all(self) -> dict[str, Any]:
        """Every system over its grid and the learning rates, as the file of a comparison has it."""
        return {"systems": dict(self.systems), "vary": {RATE: list(self.rates)}}

    def of_some(self, points: Sequence[Point]) -> dict[str, Any]:
        """These points alone, each as a system of its own."""
        named = names_of(points)
        return {"systems": {name: self.settings_of(point) for name, point in named.items()}}

    def settings_of(self, point: Point) -> Settings:
        """The settings of a point on top of the configuration, by dotted keys."""
        own = {key: value for key, value in self.systems[point.system].items() if key != VARY}
        return own | dict(point.values)


def read_candidates(path: Path | None, config: Config) -> Candidates:
    """Reads what is tried, and adds the configuration as it stands if it is not plain training.

    What a file says lies over the configuration. Ours is of systems that have no more than it says: what the
    configuration adds to plain training is undone for them.

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
    if path is None:
        systems = {
            name: _alone(each, config) for name, each in systems.items() if _possible(each, config)
        }
    if config.method.name != "naive" or config.policies != PoliciesSettings():
        systems = {CONFIGURED: {}, **systems}
    systems = {name: _at_own_rates(each, found.rates, config) for name, each in systems.items()}
    return Candidates(systems, _multiples(found.rates, config.training.learning_rate))


def _multiples(rates: Sequence[float], of: float) -> tuple[float, ...]:
    return tuple(sorted({float(f"{rate * of:.3g}") for rate in rates}))


def _possible(system: Settings, config: Config) -> bool:
    """Whether the configuration's optimizer has the second moments that a system wants."""
    reads = OPTIMIZER_OPTIONS[config.training.optimizer]
    return "training.second_moment" not in system or "second_moment" in reads


def _alone(system: Settings, config: Config) -> Settings:
    """A system of ours without the configuration's policies, nor what belongs to them or to its schedule."""
    training, usual, policies = config.training, TrainingSettings(), PoliciesSettings()
    undone: Settings = {
        f"policies.{field.name}": getattr(policies, field.name)
        for field in dataclasses.fields(policies)
        if getattr(config.policies, field.name) != getattr(policies, field.name)
    }
    schedule = training.schedule
    if config.policies.averaging is not None:  # Its constant rate alone forgets more.
        undone["training.schedule"] = schedule = usual.schedule
        undone["training.second_moment"] = usual.second_moment
    read = SCHEDULE_OPTIONS[system.get("training.schedule", schedule)]
    options = dict.fromkeys(each for several in SCHEDULE_OPTIONS.values() for each in several)
    for option in options:
        if option not in read and getattr(training, option) != getattr(usual, option):
            undone[f"training.{option}"] = getattr(usual, option)
    averaging = "policies.averaging"
    if averaging in system and averaging in undone:  # Else the configuration's would lie below.
        whole = dataclasses.asdict(AveragingSettings()) | system[averaging]
        system = {**system, averaging: whole}
    found = undone | system
    rows = config.training.batch_size
    for key, values in found.get(VARY, {}).items():
        if key.endswith("share"):  # One that makes no row of a batch would be refused.
            made = [x for x in values if not x or 0 < Stream(OWN, x).rows(rows) < rows]
            found = {**found, VARY: {**found[VARY], key: made}}
    return found


def _at_own_rates(system: Settings, rates: Sequence[float], config: Config) -> Settings:
    """A system whose method has a learning rate of its own is tried with multiples of that."""
    vary = system.get(VARY, {})
    own = {key: value for key, value in system.items() if key not in (WITH, VARY)}
    method = overlay({**own, WITH: system.get(WITH, ())}).get("method")
    method = method if isinstance(method, dict) else {}
    configured: Any = config.method if method.get("name") in (None, config.method.name) else None
    rate = method.get("learning_rate", getattr(configured, "learning_rate", None))
    if not isinstance(rate, int | float) or {RATE, OWN_RATE} & {*vary}:
        return system
    found = {**system, VARY: {OWN_RATE: list(_multiples(rates, rate)), **vary}}
    if "learning_rate" in overlay(own).get("training", {}):
        return found
    return {RATE: config.training.learning_rate, **found}


def _with_absolute(settings: Settings, directory: Path) -> Settings:
    """Overlays by paths that mean the same from anywhere."""
    if WITH not in settings:
        return settings
    files = settings[WITH] if isinstance(settings[WITH], list) else [settings[WITH]]
    return {
        **settings,
        WITH: [str((directory / Path(each).expanduser()).absolute()) for each in files],
    }


def names_of(points: Sequence[Point]) -> dict[str, Point]:
    """Points by their names as systems of their own."""
    found: dict[str, Point] = {}
    for point in points:
        chosen = re.sub(r"[^A-Za-z0-9_.]+", "-", point.name).strip("-")
        name = numbered = f"{point.system}-{chosen}"[:95]
        numbers = itertools.count(2)
        while numbered in found:  # -1 and 1 are called the same, and so are names that begin alike.
            numbered = f"{name}-{next(numbers)}"
        found[numbered] = point
    return found


def overlay(settings: Settings) -> dict[str, Any]:
    """The same settings as a file that `--with` takes; overlays that they name are written out."""
    own = {key: value for key, value in settings.items() if key != WITH}
    merged: dict[str, Any] = {}
    for path in settings.get(WITH, ()):
        merged = _merged(merged, layer_of(parse_file(Path(path))).plain())
    layer = layer_of(parse_yaml(dump_yaml(own), "candidates")) if own else Node({}, "candidates")
    return _merged(merged, layer.plain())


def _merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    found = dict(one)
    for key, value in other.items():
        before: Any = found.get(key)
        both = isinstance(before, dict) and isinstance(value, dict)
        # What was chosen before has no part in another choice.
        if both and before.get("name") == value.get("name", before.get("name")):
            found[key] = _merged(before, value)
        else:
            found[key] = value
    return found


def beside(overrides: Sequence[str], settings: Mapping[str, Any]) -> list[str]:
    """The `--key=value` arguments that say nothing of what an overlay sets, over which they would lie."""
    taken = [*_keys(settings)]
    if "name" in settings.get("method", {}):
        taken.append("method")

    def free(override: str) -> bool:
        key = f"{override.removeprefix('--').partition('=')[0]}."
        return not any(key.startswith(f"{each}.") or f"{each}.".startswith(key) for each in taken)

    return [each for each in overrides if free(each)]


def _keys(settings: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            yield from _keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


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
