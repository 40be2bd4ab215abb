"""What a family of models is: how HuggingFace says its numbers, and what it calls its tensors."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from transformers import PretrainedConfig

from das_jax.errors import UserError
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
      only: keys of which one value alone is supported.
    """

    config: type[PretrainedConfig]
    lm: str
    classifier: str
    names: Names
    keys: Mapping[str, str]
    rest: Callable[[Any], Mapping[str, Any]]
    only: Mapping[str, Any] = field(default_factory=dict)


def rotary_of(parameters: Mapping[str, Any]) -> Rotary:
    """A table from `rope_parameters`.

    Raises:
      UserError: of another kind than default, linear and llama3.
    """
    kind = parameters.get("rope_type", "default")
    if (share := parameters.get("partial_rotary_factor", 1)) != 1:
        raise UserError(
            f"partial_rotary_factor is {share}; only 1 is supported, so use another checkpoint"
        )
    base = float(parameters["rope_theta"])
    if kind == "default":
        return Rotary(base)
    if kind == "linear":
        return Rotary(base, float(parameters["factor"]))
    if kind == "llama3":
        keys = (
            *("factor", "low_freq_factor", "high_freq_factor"),
            "original_max_position_embeddings",
        )
        return Rotary(base, stretch=Stretch(*(float(parameters[key]) for key in keys)))
    raise UserError(
        f"rope_type is {kind!r}; supported are default, linear and llama3, so use another checkpoint"
    )


FULL, SLIDING = "full_attention", "sliding_attention"


def windows(layer_types: list[str], reach: int | None) -> tuple[int | None, ...]:
    """How far every layer's tokens read, from `layer_types`; empty if nowhere a window stands.

    Raises:
      UserError: a layer is neither of full nor of sliding attention.
    """
    for kind in layer_types:
        if kind not in (FULL, SLIDING):
            raise UserError(
                f"layer_types names {kind!r}; supported are {FULL} and {SLIDING}, so use another checkpoint"
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
