"""Plug-ins beside both sub-layers (Ke et al., Continual Training of Language Models for Few-Shot Learning,
EMNLP 2022).
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from das_jax.errors import UserError
from das_jax.model.activations import ACTIVATIONS
from das_jax.model.architecture import Architecture
from das_jax.model.grafts.adapter import bottleneck
from das_jax.model.grafts.gates import net_leaves
from das_jax.model.grafts.graft import Graft, Params
from das_jax.model.leaves import Leaves

STANDARD_DEVIATION = 0.02
"""Of the matrices at the start: with zeros, a relu behind them would never give a gradient."""

PLACES = {"attention": "context", "feed_forward": "feed_forward"}
"""The site of the net beside each sub-layer."""


@dataclass(frozen=True)
class Plugins(Graft):
    """c + B(x) in place of the heads' context c, before its output projection, x being what attention reads,
    and y + B(x1) in place of the feed-forward output y, x1 being what the feed-forward layer reads.

    B(z) = f(U relu(D z + b) + b').

    Attributes:
      attention: features between D and U beside attention.
      feed_forward: the same beside the feed-forward layer.
      output_activation: f, a relu or nothing.
    """

    attention: int = 512
    feed_forward: int = 768
    output_activation: Literal["relu", "none"] = "relu"

    @property
    def widths(self) -> dict[str, int]:
        """The features between D and U, by place."""
        return {"attention": self.attention, "feed_forward": self.feed_forward}

    def check(self, architecture: Architecture) -> None:
        if min(self.widths.values()) < 1:
            raise UserError(
                f"a plug-in of {min(self.widths.values())} features is none; give 1 or more"
            )
        if architecture.num_heads * architecture.head_size != architecture.hidden_size:
            raise UserError(
                "plug-ins add to the heads' context, which is to be as wide as the model"
            )

    def init(self, architecture: Architecture, key: jax.Array, base: Params) -> Params:
        keys = jax.random.split(key, len(PLACES))
        return {
            place: two_layers(key, architecture, width)
            for key, (place, width) in zip(keys, self.widths.items(), strict=True)
        }

    def at(self, site: str, params: Params, input: jax.Array, output: jax.Array) -> jax.Array:
        for place, at in PLACES.items():
            if site == at:
                added = bottleneck(params[place], input, "relu")
                if self.output_activation == "relu":
                    added = ACTIVATIONS["relu"](added)
                return output + added.reshape(output.shape)
        return output

    def leaves(self) -> Leaves:
        return tuple(leaf for place in PLACES for leaf in net_leaves(place))


def two_layers(key: jax.Array, architecture: Architecture, width: int) -> Params:
    """A net of every layer at the start, normal, from the model's width to `width` and back."""
    layers, wide = architecture.num_layers, architecture.hidden_size
    down, up = jax.random.split(key)

    def matrix(key: jax.Array, *shape: int) -> jax.Array:
        return STANDARD_DEVIATION * jax.random.normal(key, (layers, *shape))

    return {
        "down": {"kernel": matrix(down, wide, width), "bias": jnp.zeros((layers, width))},
        "up": {"kernel": matrix(up, width, wide), "bias": jnp.zeros((layers, wide))},
    }
