"""What a family of models is: how HuggingFace says its numbers, and what it calls its tensors."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from transformers import PretrainedConfig

from das_jax.errors import UserError, shown
from das_jax.model.rotary import Rotary, Stretch


class Names(NamedTuple):
    """How a family names its modules at HuggingFace.

    Attributes:
      prefix: of all but the head; a bare model leaves it out.
      modules: from a module here to the one there; {} is the number of the layer.
      others: a pattern for what its checkpoints may hold besides the model and its LM head.
      joined: modules that share a tensor there, in the order in which they lie along what it gives.
      transposed: whether the layers' projections are [out, in] there, and not [in, out]; heads always are.
    """

    prefix: str
    modules: Mapping[str, str]
    others: str
    joined: tuple[tuple[str, ...], ...] = ()
    transposed: bool = True


@dataclass(frozen=True)
class Family:
    """A `model_type`.

    Attributes:
      config: the class that reads its config.json.
      lm: the class that loads what is exported.
      classifier: the class that loads a classifier.
      names: of its tensors.
      keys: from a number of the architecture to the key of config.json that is it.
      rest: all other numbers, from the configuration.
      only: keys of which some values alone are supported, the usual one first.
      reads: the other keys that `rest` depends on, by their old names too.
      unused: keys of its own that have no effect here.
      today: puts right what the class would misread in an older config.json, as it was read.
    """

    config: type[PretrainedConfig]
    lm: str
    classifier: str
    names: Names
    keys: Mapping[str, str]
    rest: Callable[[Any], Mapping[str, Any]]
    only: Mapping[str, Any] = field(default_factory=dict)
    reads: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    today: Callable[[dict[str, Any]], dict[str, Any]] = lambda config: config


SCALINGS = {
    "default": (),
    "linear": ("factor",),
    "llama3": (
        *("factor", "low_freq_factor", "high_freq_factor"),
        "original_max_position_embeddings",
    ),
}
"""The kinds of rotary tables, and what each needs besides its base."""


def rotary_of(parameters: Mapping[str, Any]) -> Rotary:
    """A table from `rope_parameters`.

    Raises:
      UserError: of another kind than default, linear and llama3, or with a number that none can have.
    """
    kind = parameters.get("rope_type", "default")
    if kind not in SCALINGS:
        raise UserError(
            f"rope_type is {kind!r}; supported are default, linear and llama3, so use another checkpoint"
        )
    if (share := parameters.get("partial_rotary_factor", 1)) != 1:
        raise UserError(
            f"partial_rotary_factor is {share}; only 1 is supported, so use another checkpoint"
        )
    keys = "rope_theta", *SCALINGS[kind]
    for key in sorted(set(parameters) - {"rope_type", "partial_rotary_factor", *keys}):
        raise UserError(
            f"{key} is {shown(repr(parameters[key]))} in the rope_parameters of type {kind}, where it has no "
            "meaning; remove it, or use another checkpoint"
        )
    base, *numbers = (float(parameters[key]) for key in keys)
    for key, number in zip(keys, (base, *numbers), strict=True):
        if not 0 < number < math.inf:
            raise UserError(f"{key} is {number} in rope_parameters; it must be positive")
    if kind == "llama3":
        stretch = Stretch(*numbers)
        if stretch.low >= stretch.high:
            raise UserError(
                f"low_freq_factor is {stretch.low}; it must be below high_freq_factor {stretch.high}"
            )
        return Rotary(base, stretch=stretch)
    return Rotary(base, factor=next(iter(numbers), 1.0))


def renamed_rope(config: dict[str, Any]) -> dict[str, Any]:
    """`type`, of the older files, as `rope_type`: some classes of transformers read the new name alone, and
    then scale nothing.

    Raises:
      UserError: both are there, and differ.
    """

    def renamed(parameters: Any) -> Any:
        if not isinstance(parameters, dict):
            return parameters
        new = {key: renamed(value) for key, value in parameters.items() if key != "type"}
        if (kind := parameters.get("type")) is not None and new.setdefault(
            "rope_type", kind
        ) != kind:
            raise UserError(
                f"type is {kind!r} and rope_type is {new['rope_type']!r} in one table of rotary positions; "
                "remove the wrong one"
            )
        return new

    keys = ("rope_scaling", "rope_parameters")
    return {**config, **{key: renamed(config[key]) for key in keys if key in config}}


FULL, SLIDING = "full_attention", "sliding_attention"


def window_reach(config: Any) -> int | None:
    """How far a token of a decoder's window reads: it is one of the `sliding_window` itself."""
    return None if config.sliding_window is None else config.sliding_window - 1


def windows(layer_types: list[str], reach: int | None) -> tuple[int | None, ...]:
    """How far every layer's tokens read, from `layer_types`; empty if nowhere a window stands.

    Raises:
      UserError: a layer is neither of full nor of sliding attention, or there is no window to slide.
    """
    for kind in layer_types:
        if kind not in (FULL, SLIDING):
            raise UserError(
                f"layer_types names {kind!r}; supported are {FULL} and {SLIDING}, so use another checkpoint"
            )
    if SLIDING in layer_types and (reach is None or reach < 0):
        window = "no window" if reach is None else "an empty window"
        raise UserError(
            f"layer_types names {SLIDING}, and there is {window}; give that of the training"
        )
    reaches = tuple(reach if kind == SLIDING else None for kind in layer_types)
    return () if set(reaches) <= {None} else reaches


def two_tables(config: Any) -> dict[str, Any]:
    """The rotary tables of full and of windowed layers, where each kind has its own."""
    tables = tuple(rotary_of(config.rope_parameters[kind]) for kind in (FULL, SLIDING))
    return {
        "rotary": tables,
        "rotary_of_layers": tuple((FULL, SLIDING).index(kind) for kind in config.layer_types),
    }
