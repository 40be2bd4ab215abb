"""Low-rank additions to projections (Hu et al., LoRA, ICLR 2022)."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from das_jax.errors import UserError
from das_jax.model.architecture import Architecture
from das_jax.model.dense import product
from das_jax.model.grafts.graft import Graft, Params, without_graft
from das_jax.model.leaves import Leaf, Leaves


class Target(NamedTuple):
    """A projection: its place below `layers/` and the letters of its kernel's axes, read and written."""

    path: tuple[str, str]
    reads: str
    writes: str


TARGETS = {
    "query": Target(("attention", "query"), "D", "HK"),
    "key": Target(("attention", "key"), "D", "GK"),
    "value": Target(("attention", "value"), "D", "GK"),
    "attention_output": Target(("attention", "output"), "HK", "D"),
    "gate": Target(("feed_forward", "gate"), "D", "F"),
    "intermediate": Target(("feed_forward", "intermediate"), "D", "F"),
    "output": Target(("feed_forward", "output"), "F", "D"),
}
"""By site."""


def ordered(targets: Iterable[str]) -> tuple[str, ...]:
    """Each once, in the table's order: equal targets make one program and one file."""
    wanted = set(targets)
    return tuple(site for site in TARGETS if site in wanted)


@dataclass(frozen=True)
class LoRA(Graft):
    """W x + b + (alpha / r) B A x in place of the targets' W x + b.

    A is `down/kernel`, [L, in, r], and B `up/kernel`, [L, r, out], both axes of heads kept apart.

    Attributes:
      r: the rank.
      alpha: the factor times r.
      targets: the projections, by site, see `TARGETS`.
    """

    r: int = 8
    alpha: float = 8.0
    targets: tuple[str, ...] = ("query", "value")

    @property
    def scale(self) -> float:
        return self.alpha / self.r

    def check(self, architecture: Architecture) -> None:
        if "gate" in self.targets and not architecture.gated:
            raise UserError(
                "method.targets has gate, but the model's feed-forward has none; leave it out"
            )

    def init(self, architecture: Architecture, key: jax.Array, base: Params) -> Params:
        """A uniform within 1 / sqrt(in), which is Kaiming's with a = sqrt(5), and B 0."""
        sizes = {**architecture.sizes, "R": self.r}

        def pair(site: str, key: jax.Array) -> Params:
            down, up = (leaf.shape(sizes) for leaf in self._pair(site))
            bound = 1 / math.sqrt(math.prod(down[1:-1]))
            return {
                "down": {"kernel": jax.random.uniform(key, down, minval=-bound, maxval=bound)},
                "up": {"kernel": jnp.zeros(up)},
            }

        keys = jax.random.split(key, len(self.targets))
        return {site: pair(site, key) for site, key in zip(self.targets, keys, strict=True)}

    def at(self, site: str, params: Params, input: jax.Array, output: jax.Array) -> jax.Array:
        if site not in self.targets:
            return output
        down, up = (params[site][name]["kernel"] for name in ("down", "up"))
        return output + product(self.scale * product(input, down, len(TARGETS[site].reads)), up)

    def merged(self, params: Params) -> Params:
        """W + (alpha / r) B A, in the parameters' own type; exact but for rounding."""
        layers = jax.tree.map(lambda x: x, params["layers"])
        for site in self.targets:
            sublayer, name = TARGETS[site].path
            down, up = (params["graft"][site][part]["kernel"] for part in ("down", "up"))
            rows = jnp.matmul(
                down.reshape(len(down), -1, self.r),
                up.reshape(len(up), self.r, -1),
                precision=jax.lax.Precision.HIGHEST,  # A TPU would round to bfloat16 first.
            )
            kernel = layers[sublayer][name]["kernel"]
            layers[sublayer][name]["kernel"] = kernel + self.scale * rows.reshape(kernel.shape)
        return {**without_graft(params), "layers": layers}

    def leaves(self) -> Leaves:
        return tuple(leaf for site in self.targets for leaf in self._pair(site))

    def _pair(self, site: str) -> tuple[Leaf, Leaf]:
        target = TARGETS[site]
        return (
            Leaf(f"graft/{site}/down/kernel", f"L{target.reads}->R"),
            Leaf(f"graft/{site}/up/kernel", f"LR->{target.writes}"),
        )
