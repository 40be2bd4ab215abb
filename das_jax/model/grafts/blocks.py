"""New layers between the old ones (Wu et al., LLaMA Pro, ACL 2024)."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from das_jax.errors import UserError
from das_jax.model.architecture import Architecture
from das_jax.model.grafts.graft import Graft, Params
from das_jax.model.leaves import ENCODER, Leaf, Leaves


@dataclass(frozen=True)
class Blocks(Graft):
    """A layer after every so many layers, a copy of the one below that does nothing at first.

    The paper zeroes both output projections, which is the identity where norms come first. Where they come
    last, LN(LN(h)) is not h. So the block is h + layer(h) there, a residual of its own, and the copy's second
    LayerNorm starts at 0. Either way the model is what it was, to the last bit, and at first only what is 0
    gets a gradient.

    Attributes:
      every: k; a block stands after layers k, 2 k, ..., L, so it must divide L.
      residual: whether the block is h + layer(h), for layers that end with a norm.
    """

    every: int = 3
    residual: bool = True

    def check(self, architecture: Architecture) -> None:
        layers = architecture.num_layers
        if self.every < 1 or layers % self.every:
            fitting = [str(k) for k in range(1, layers + 1) if layers % k == 0]
            raise UserError(
                f"a block after every {self.every} layers does not fit a model of {layers}; "
                f"let `every` be one of {', '.join(fitting)}"
            )

    def init(self, architecture: Architecture, key: jax.Array, base: Params) -> Params:
        """Copies of the layers that the blocks stand behind, but for what is 0; nothing is random."""
        self.check(architecture)
        blocks = jax.tree.map(lambda x: x[self.every - 1 :: self.every], base["layers"])
        zeros = [("feed_forward", "layer_norm")]
        if not self.residual:
            zeros = [("attention", "output"), ("feed_forward", "output")]
        for sublayer, module in zeros:
            blocks[sublayer][module] = jax.tree.map(jnp.zeros_like, blocks[sublayer][module])
        return blocks

    def block(
        self,
        layer: Callable[[Params, jax.Array], jax.Array],
        params: Params,
        hidden_BxTxD: jax.Array,
    ) -> jax.Array:
        after_BxTxD = layer(params, hidden_BxTxD)
        return hidden_BxTxD + after_BxTxD if self.residual else after_BxTxD

    def leaves(self) -> Leaves:
        """Those of a layer, without units: gates are for the old layers."""
        return tuple(
            Leaf(f"graft/{leaf.path.removeprefix('layers/')}", f"N{leaf.axes.removeprefix('L')}")
            for leaf in ENCODER
            if leaf.path.startswith("layers/")
        )
