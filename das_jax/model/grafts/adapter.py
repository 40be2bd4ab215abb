"""Bottleneck adapters, in three forms.

`houlsby`: behind both sub-layers (Houlsby et al., Parameter-Efficient Transfer Learning for NLP, ICML 2019).
`pfeiffer`: behind the feed-forward one, through its LayerNorm (Pfeiffer et al., AdapterFusion, EACL 2021).
`parallel`: beside the feed-forward one (He et al., Towards a Unified View of Parameter-Efficient Transfer
Learning, ICLR 2022).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn.initializers import variance_scaling, zeros

from das_jax.errors import UserError
from das_jax.model.activations import ACTIVATIONS
from das_jax.model.architecture import Architecture
from das_jax.model.dense import product
from das_jax.model.grafts.graft import Graft, Params
from das_jax.model.leaves import Leaf, Leaves

STANDARD_DEVIATION = 1e-2
"""Of Houlsby's matrices at the start, a normal cut at two of them (section 3.6 there); biases are 0."""

Draw = Callable[[jax.Array, tuple[int, ...]], jax.Array]
"""(key, shape [L, in, out]) -> a matrix of every layer."""

Normalise = Callable[[jax.Array], jax.Array]


def _near_zero(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return STANDARD_DEVIATION * jax.random.truncated_normal(key, -2, 2, shape)


_kaiming: Draw = variance_scaling(1 / 3, "fan_in", "uniform", batch_axis=0)
"""Uniform within 1 / sqrt(in), which is Kaiming's with a = sqrt(5)."""


class Form(NamedTuple):
    """What tells one form of adapter from another.

    Attributes:
      sites: where there is one.
      activation: f, by name.
      reads: what it reads, of what the sub-layer read, what that gave, and the LayerNorm of their sum.
      down: D at the start.
      up: U at the start.
      norms: whether the layers' LayerNorms are trained with it.
    """

    sites: tuple[str, ...]
    activation: str
    reads: Callable[[jax.Array, jax.Array, Normalise], jax.Array]
    down: Draw = _near_zero
    up: Draw = _near_zero
    norms: bool = False


FORMS = {
    "houlsby": Form(
        ("attention", "feed_forward"), "gelu", lambda input, output, normalise: output, norms=True
    ),
    "houlsby_alone": Form(
        ("attention", "feed_forward"), "gelu", lambda input, output, normalise: output
    ),
    "pfeiffer": Form(
        ("feed_forward",), "relu", lambda input, output, normalise: normalise(input + output)
    ),
    "parallel": Form(
        ("feed_forward",), "relu", lambda input, output, normalise: input, _kaiming, zeros
    ),
}


@dataclass(frozen=True)
class Adapter(Graft):
    """y + scale (U f(D z + b) + b') in place of a sub-layer's output y, before its residual sum.

    z is y itself (`houlsby`), the layer's LayerNorm of that sum (`pfeiffer`), or what the sub-layer read
    (`parallel`). Houlsby's paper trains the layers' LayerNorms too; they stay where they are, in `layers/`,
    and as they are with `houlsby_alone`.

    Attributes:
      bottleneck: features between D and U.
      form: see `FORMS`.
      scale: of what is added.
    """

    bottleneck: int = 64
    form: Literal["houlsby", "houlsby_alone", "pfeiffer", "parallel"] = "houlsby"
    scale: float = 1.0

    @property
    def traits(self) -> Form:
        return FORMS[self.form]

    def check(self, architecture: Architecture) -> None:
        if self.bottleneck < 1:
            raise UserError(f"a bottleneck of {self.bottleneck} features is none; give at least 1")

    def init(self, architecture: Architecture, key: jax.Array, base: Params) -> Params:
        layers, wide, narrow = architecture.num_layers, architecture.hidden_size, self.bottleneck
        sites, form = self.traits.sites, self.traits

        def adapter(key: jax.Array) -> Params:
            down, up = jax.random.split(key)
            return {
                "down": {
                    "kernel": form.down(down, (layers, wide, narrow)),
                    "bias": jnp.zeros((layers, narrow)),
                },
                "up": {
                    "kernel": form.up(up, (layers, narrow, wide)),
                    "bias": jnp.zeros((layers, wide)),
                },
            }

        keys = jax.random.split(key, len(sites))
        return {site: adapter(key) for site, key in zip(sites, keys, strict=True)}

    def before_sum(
        self,
        site: str,
        params: Params,
        input: jax.Array,
        output: jax.Array,
        normalise: Normalise,
    ) -> jax.Array:
        if site not in self.traits.sites:
            return output
        read = self.traits.reads(input, output, normalise)
        added = bottleneck(params[site], read, self.traits.activation)
        return output + (added if self.scale == 1 else self.scale * added)

    def leaves(self) -> Leaves:
        return tuple(
            Leaf(f"graft/{site}/{part}", axes)
            for site in self.traits.sites
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
