"""Bottleneck adapters (Houlsby et al., Parameter-Efficient Transfer Learning for NLP, ICML 2019)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from das_jax.errors import UserError
from das_jax.model.activations import ACTIVATIONS
from das_jax.model.architecture import Architecture
from das_jax.model.dense import product
from das_jax.model.grafts.graft import Graft, Params
from das_jax.model.leaves import Leaf, Leaves

STANDARD_DEVIATION = 1e-2
"""Of the matrices at the start, a normal cut at two of them (section 3.6 of the paper); biases are 0."""


@dataclass(frozen=True)
class Adapter(Graft):
    """z + U gelu(D z + b) + b' in place of both sub-layers' outputs z, before their residual sums.

    The paper trains the layers' LayerNorms too; they stay where they are, in `layers/`.

    Attributes:
      bottleneck: features between D and U.
    """

    bottleneck: int = 64

    SITES = ("attention", "feed_forward")
    ACTIVATION = "gelu"

    def check(self, architecture: Architecture) -> None:
        if self.bottleneck < 1:
            raise UserError(f"a bottleneck of {self.bottleneck} features is none; give at least 1")

    def init(self, architecture: Architecture, key: jax.Array, base: Params) -> Params:
        layers, wide, narrow = architecture.num_layers, architecture.hidden_size, self.bottleneck

        def matrix(key: jax.Array, *shape: int) -> jax.Array:
            return STANDARD_DEVIATION * jax.random.truncated_normal(key, -2, 2, (layers, *shape))

        def adapter(key: jax.Array) -> Params:
            down, up = jax.random.split(key)
            return {
                "down": {"kernel": matrix(down, wide, narrow), "bias": jnp.zeros((layers, narrow))},
                "up": {"kernel": matrix(up, narrow, wide), "bias": jnp.zeros((layers, wide))},
            }

        keys = jax.random.split(key, len(self.SITES))
        return {site: adapter(key) for site, key in zip(self.SITES, keys, strict=True)}

    def at(self, site: str, params: Params, input: jax.Array, output: jax.Array) -> jax.Array:
        if site not in self.SITES:
            return output
        return output + bottleneck(params[site], output, self.ACTIVATION)

    def leaves(self) -> Leaves:
        return tuple(
            Leaf(f"graft/{site}/{part}", axes)
            for site in self.SITES
            for part, axes in (
                ("down/kernel", "LD->R"),
                ("down/bias", "LR"),
                ("up/kernel", "LR->D"),
                ("up/bias", "LD"),
            )
        )


def bottleneck(params: Params, hidden_BxTxD: jax.Array, activation: str) -> jax.Array:
    """U f(D z + b) + b', without a residual."""

    def dense(name: str, x_BxTxX: jax.Array) -> jax.Array:
        bias = params[name]["bias"].astype(x_BxTxX.dtype)
        return product(x_BxTxX, params[name]["kernel"]) + bias[None, None]

    return dense("up", ACTIVATIONS[activation](dense("down", hidden_BxTxD)))
