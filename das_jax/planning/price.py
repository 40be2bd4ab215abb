"""What every method costs beside plain training, counted from shapes: nothing is loaded, nothing is run."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
from rich.table import Table

from das_jax.config.schema import Config, CorpusSettings, ModelSettings
from das_jax.data.settings import TextSource
from das_jax.errors import UserError
from das_jax.methods.contract import Method, Plan
from das_jax.methods.partition import partition
from das_jax.methods.registry import METHODS
from das_jax.methods.settings.whole_model import NaiveSettings
from das_jax.model.architecture import Architecture
from das_jax.planning.program import Learning, PlannedRun
from das_jax.training.flops import train_step_flops
from das_jax.training.sharding import make_sharding


@dataclass(frozen=True)
class Price:
    """What a method costs in its second domain.

    Attributes:
      trained: parameters that a step moves.
      memory: bytes that are carried beside the parameters.
      full: encoder passes forward and backward over an example.
      forward: passes forward alone.
      flops: useful ones of a step, as a multiple of plain training's.
    """

    trained: int
    memory: int
    full: float
    forward: float
    flops: float


def prices(config: Config, architecture: Architecture) -> dict[str, Price | UserError]:
    """Of every method, by its name, with its default settings, or with the configuration's where it is that
    one's; why there is none of a method that the model cannot take.

    Args:
      config: its text, training and policies hold for all; two of its domains are learned.
      architecture: of the model.
    """
    found: dict[str, Price | UserError] = {}
    for settings_class in METHODS:
        settings: Any = config.method if type(config.method) is settings_class else settings_class()
        try:
            learning = second_domain(dataclasses.replace(config, method=settings), architecture)
        except UserError as error:
            found[settings.name] = error
        else:
            found[settings.name] = _price(learning, config)
    return found


def usual_config() -> Config:
    """roberta-base, with the settings that are recommended."""
    text = TextSource(kind="text", path="unused")
    return Config(
        output_dir="unused",
        model=ModelSettings(path="FacebookAI/roberta-base"),
        domains=(CorpusSettings(name="unused", source=text),),
        method=NaiveSettings(),
    )


def second_domain(config: Config, architecture: Architecture) -> Learning:
    """The last of two domains as it is learned; of what is learned at one go, that."""
    texts = [
        CorpusSettings(name=name, source=TextSource(kind="text", path=name))
        for name in ("first", "second")
    ]
    config = dataclasses.replace(config, general=None, domains=tuple(texts))
    return [*PlannedRun(config, architecture, make_sharding(1)).learned()][-1]


def _price(learning: Learning, config: Config) -> Price:
    recipe = learning.recipe
    trained, _ = partition(learning.params, recipe.plan.trains)
    naive = dataclasses.replace(
        recipe,
        method=Method(recipe.method.model, recipe.method.objective, None),
        plan=Plan(recipe.method.model),
        policies=(),
    )
    sizes = config.training.batch_size, config.data.length
    cost, carried = recipe.cost(), (learning.memory, learning.policies)
    return Price(
        trained=sum(x.size for x in jax.tree.leaves(trained)),
        memory=sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(carried))
        + sum(x.nbytes for x in learning.kept.values()),
        full=cost.full,
        forward=cost.forward,
        flops=train_step_flops(recipe, *sizes) / train_step_flops(naive, *sizes),
    )


def methods_table(config: Config, architecture: Architecture) -> Table:
    """Every method, where it is from, of what kind it is, and its price."""
    table = Table(
        title=f"methods, and their price in the second domain: {config.model.path}, "
        f"{config.training.batch_size} x {config.data.length} tokens a step",
        title_justify="left",
        title_style="",
        caption="passes: through the encoder, forward and backward (+ forward alone); FLOPs of a step: as a "
        "multiple of naive's; carried: beside the parameters, from domain to domain",
        caption_justify="left",
    )
    for name in ("method", "kind", "from"):
        table.add_column(name)
    for name in ("trained", "carried", "passes", "FLOPs"):
        table.add_column(name, justify="right")
    methods = {settings_class().name: method for settings_class, method in METHODS.items()}
    for name, price in prices(config, architecture).items():
        about = name, methods[name].kind, methods[name].paper
        if isinstance(price, UserError):
            table.add_row(*about, *["-"] * 4)
            table.caption = f"{table.caption}\n{name}: {price}"
            continue
        passes = f"{price.full:g}" + (f" + {price.forward:g}" if price.forward else "")
        table.add_row(
            *about,
            f"{price.trained / 1e6:,.2f} M",
            f"{price.memory / 1e6:,.1f} MB",
            passes,
            f"{price.flops:.2f}",
        )
    return table
