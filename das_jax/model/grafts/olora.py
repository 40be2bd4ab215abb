"""Low-rank additions of one domain after the other, in subspaces of their own (Wang et al., Orthogonal
Subspace Learning for Language Model Continual Learning, EMNLP 2023 Findings).
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from das_jax.model.architecture import Architecture
from das_jax.model.grafts.graft import Params
from das_jax.model.grafts.lora import LoRA
from das_jax.model.leaves import Leaves

EARLIER = "earlier"
"""What holds the pairs of the domains before, side by side along the rank."""


@dataclass(frozen=True)
class OLoRA(LoRA):
    """W x + b + (alpha / r) (B A + sum of the earlier domains' B_i A_i) x in place of the targets' W x + b.

    The earlier pairs are one, of A [L, in, t r] and B [L, t r, out], below `earlier`: apart from the pair
    that is trained, so that no gradient of theirs is computed.

    Attributes:
      earlier: t, how many domains came before.
    """

    earlier: int = 0

    def init(self, architecture: Architecture, key: jax.Array, base: Params) -> Params:
        """A pair as LoRA's; earlier ones that add nothing."""
        own = super().init(architecture, key, base)
        if not self.earlier:
            return own
        wide = LoRA(self.earlier * self.r, targets=self.targets).init(architecture, key, base)
        return {**own, EARLIER: jax.tree.map(jnp.zeros_like, wide)}

    def at(self, site: str, params: Params, input: jax.Array, output: jax.Array) -> jax.Array:
        if self.earlier:
            output = super().at(site, params[EARLIER], input, output)
        return super().at(site, params, input, output)

    def merged(self, params: Params) -> Params:
        one, params = self.exported(params)
        return one.merged(params)

    def exported(self, params: Params) -> tuple[LoRA, Params]:
        """One LoRA of rank (t + 1) r, and of the same alpha / r."""
        count = self.earlier + 1
        one = LoRA(count * self.r, count * self.alpha, self.targets)
        return one, {**params, "graft": joined(params["graft"])}

    def leaves(self) -> Leaves:
        own = tuple(super().leaves())
        earlier = (
            leaf._replace(path=leaf.path.replace("graft/", f"graft/{EARLIER}/")) for leaf in own
        )
        return (*own, *earlier) if self.earlier else own


def joined(graft: Params) -> Params:
    """All pairs as one, the earlier domains' first."""
    own = {site: pair for site, pair in graft.items() if site != EARLIER}
    if EARLIER not in graft:
        return own
    rank = {"down": -1, "up": 1}
    return {
        site: {
            part: {
                "kernel": jnp.concatenate(
                    [graft[EARLIER][site][part]["kernel"], own[site][part]["kernel"]], axis
                )
            }
            for part, axis in rank.items()
        }
        for site in own
    }


def overlap(graft: Params, norm: Literal["l1", "squared"]) -> jax.Array:
    """How far a domain's A is from orthogonal to the earlier ones: the sum of the absolute or squared entries
    of A_i A^T over all adapted matrices and i, [].

    Eq. 8 of the paper squares them; its code, and its results, do not.

    Args:
      graft: the parameters of an `OLoRA` with earlier domains.
      norm: of the entries.
    """
    size = jnp.abs if norm == "l1" else jnp.square
    total = jnp.zeros(())
    for site, earlier in graft[EARLIER].items():
        before, now = (pair["down"]["kernel"] for pair in (earlier, graft[site]))
        product_LxRxS = jnp.einsum(
            "LIR,LIS->LRS",
            *(x.reshape(len(x), -1, x.shape[-1]) for x in (before, now)),
            precision=jax.lax.Precision.HIGHEST,  # A TPU would round to bfloat16 first.
        )
        total += jnp.sum(size(product_LxRxS))
    return total
