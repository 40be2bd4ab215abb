"""What a comparison is made of: points, a system at one place of its grid each, and cells, the runs of it."""

import dataclasses
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from das_jax.comparing.budget import at_equal_flops, plain, total_flops
from das_jax.comparing.file import Comparison, System
from das_jax.config.load import Resolved, layer_of, load_config
from das_jax.config.parse import Node
from das_jax.config.schema import Config
from das_jax.config.show import difference
from das_jax.errors import UserError
from das_jax.training.run_directory import RunDirectory

ONLY = "only"
"""The point of a system that has no grid."""

DRAWN = 20230303
"""The seed of the orders that are drawn: a comparison with more of them has the same ones first."""

VALIDATION = 0.05
"""The share of the documents that is held out for choosing, where the configuration says nothing."""

EQUAL = (
    *("model.path", "data.length", "data.heldout", "data.validation", "data.special_tokens"),
    *("general.", "domains.", "training.mask_rate", "training.steps", "evaluation.examples"),
    "seed",
)
"""What must be the same in all that is compared: the model, the texts, what is measured, the steps, and the
seeds."""


@dataclass(frozen=True)
class Point:
    """A system with one choice of what is varied.

    Attributes:
      system: its name.
      name: of the choice, and of its directory.
      values: what was chosen, by dotted key.
      grid: all that could be chosen, by dotted key.
      config: the configuration, its own order, seed and directory apart.
      bound: whether the system only shows what is possible.
    """

    system: str
    name: str
    values: Mapping[str, Any]
    grid: Mapping[str, tuple[Any, ...]]
    config: Config
    bound: bool = False

    @property
    def title(self) -> str:
        """For people."""
        return self.system if self.name == ONLY else f"{self.system} ({self.name})"


@dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
      point: of what.
      order: its number, from 1.
      seed: of the run.
      config: the whole configuration of the run, which `das-jax pretrain` would take.
    """

    point: Point
    order: int
    seed: int
    config: Config

    @property
    def run(self) -> RunDirectory:
        return RunDirectory(Path(self.config.output_dir).expanduser())

    @property
    def place(self) -> Path:
        """Of all runs of its point."""
        return self.run.path.parents[1]

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.point.title}, order {self.order}, seed {self.seed}"


def points_of(comparison: Comparison) -> list[Point]:
    """Every point of every system, the bounds last.

    Raises:
      UserError: naming the system and the file: its configuration is not valid, it differs from the others
        in what must be equal, or its share of FLOPs is too small.
    """
    base = base_of(comparison)
    flops = total_flops(plain(base)) if comparison.settings.budget == "flop" else None
    found = []
    for system in comparison.systems:
        names: set[str] = set()
        for choice in itertools.product(*system.grid.values()):
            values = dict(zip(system.grid, choice, strict=True))
            config = _config(comparison, base, system, values)
            if flops is not None:
                config = _named(system, lambda config=config: at_equal_flops(config, flops))
            plain_values = {key: node.plain() for key, node in values.items()}
            name = _name(plain_values, names)
            grid = {
                key: tuple(each.plain() for each in nodes) for key, nodes in system.grid.items()
            }
            found.append(Point(system.name, name, plain_values, grid, config, system.bound))
    return found


def base_of(comparison: Comparison) -> Config:
    """What is equal, as one configuration.

    Raises:
      UserError: it is not valid, or has no text to choose on.
    """
    resolved = load_config(comparison.config, comparison.overrides, [comparison.common])
    if resolved.origins["data.validation"] != "default" and not resolved.config.data.validation:
        raise UserError(
            f"{resolved.origins['data.validation']}: data.validation is 0, but a comparison chooses on such "
            "text; make it larger, or leave it out"
        )
    return _for_comparing(resolved, resolved.config)


def _config(
    comparison: Comparison, base: Config, system: System, values: Mapping[str, Node]
) -> Config:
    point = layer_of(Node(dict(values), system.origin))
    layers = [comparison.common, *system.layers, point]

    def load() -> Config:
        config = _for_comparing(load_config(comparison.config, comparison.overrides, layers), base)
        equal_steps = comparison.settings.budget == "steps"
        equal = (*EQUAL, *(["training.batch_size"] if equal_steps else []))
        for key, wanted, given in difference(base, config):
            if key == "output_dir":
                raise UserError(
                    f"output_dir is {given}, but cells go below the comparison's own; leave it out"
                )
            if key.startswith(equal):
                raise UserError(
                    f"{key} is {given}, and {wanted} of the others; give it under `settings`, for all"
                )
        return config

    return _named(system, load)


def _for_comparing(resolved: Resolved, base: Config) -> Config:
    """With text to choose on, and a warm-up that does not depend on what is varied."""
    config, origins = resolved.config, resolved.origins
    if origins["data.validation"] == "default":
        data = dataclasses.replace(config.data, validation=VALIDATION)
        config = dataclasses.replace(config, data=data)
    general = config.general
    if general is not None and general.steps and general.warmup_learning_rate is None:
        rate = base.training.learning_rate
        general = dataclasses.replace(general, warmup_learning_rate=rate)
        config = dataclasses.replace(config, general=general)
    return config


def _named(system: System, work: Any) -> Config:
    """What `work` gives; what is wrong with it names the system and its place."""
    try:
        return work()
    except UserError as error:
        where = f"system {system.name} ({system.origin})"
        lines = str(error).splitlines()
        raise UserError("\n".join(f"{where}: {line}" for line in lines)) from error


def _name(values: Mapping[str, Any], taken: set[str]) -> str:
    """A name for a directory: the last words of the keys with the values."""
    last = [key.rpartition(".")[2] for key in values]
    keys = [key if last.count(end) > 1 else end for key, end in zip(values, last, strict=True)]
    text = ",".join(f"{key}={value}" for key, value in zip(keys, values.values(), strict=True))
    name = numbered = re.sub(r"[^A-Za-z0-9_.,=+-]+", "-", text)[:100] or ONLY
    numbers = itertools.count(2)
    while numbered in taken:
        numbered = f"{name}-{next(numbers)}"
    taken.add(numbered)
    return numbered


def orders_of(comparison: Comparison, config: Config) -> list[tuple[str, ...]]:
    """The orders of the domains, by name.

    Args:
      comparison: says how many, or which.
      config: has the domains.

    Raises:
      UserError: an order lacks a domain, has another one or is there twice; or there are not so many.
    """
    names = tuple(domain.name for domain in config.domains)
    wanted, origin = comparison.settings.orders, f"{comparison.path}: orders"
    if isinstance(wanted, int):
        most = math.factorial(len(names))
        if wanted > most:
            raise UserError(
                f"{origin} is {wanted}, but {len(names)} domains have {most}; make it less"
            )
        random, found = np.random.default_rng(DRAWN), [names]
        while len(found) < wanted:
            drawn = tuple(names[i] for i in random.permutation(len(names)))
            found += [] if drawn in found else [drawn]
        return found
    for number, order in enumerate(wanted):
        if sorted(order) != sorted(names):
            raise UserError(
                f"{origin}.{number} is {', '.join(order)}; every order has all domains once: "
                f"{', '.join(names)}"
            )
        if order in wanted[:number]:
            raise UserError(f"{origin}.{number} is there twice; leave one out")
    return list(wanted)


def cells_of(
    points: Sequence[Point],
    orders: Sequence[tuple[str, ...]],
    seeds: Sequence[int],
    output_dir: Path,
) -> list[Cell]:
    """The runs of points, in OUTPUT_DIR/cells/SYSTEM/POINT/order-K/seed-N; those of equal programs follow
    each other.
    """
    found = []
    for point in points:
        for number, names in enumerate(orders[:1] if point.bound else orders, 1):
            place = output_dir / "cells" / point.system / point.name / f"order-{number}"
            by_name = {domain.name: domain for domain in point.config.domains}
            for seed in seeds:
                config = dataclasses.replace(
                    point.config,
                    domains=tuple(by_name[name] for name in names),
                    seed=seed,
                    seeds=None,
                    output_dir=str(place / f"seed-{seed}"),
                )
                found.append(Cell(point, number, seed, config))
    return found


def seeds_of(comparison: Comparison, config: Config) -> tuple[int, ...]:
    """Of every system: the comparison's, or the configuration's own."""
    return comparison.settings.seeds or config.seeds or (config.seed,)
