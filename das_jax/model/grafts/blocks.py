"""New layers between the old ones (Wu et al., LLaMA Pro, ACL 2024), where LayerNorm comes last."""

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
    """h + layer(h) after every so many layers, the layer a copy of the one below.

    The paper zeroes both output projections, which is the identity where LayerNorm comes first. Where it
    comes last, LN(LN(h)) is not h. So the block is a residual of its own and the copy's second LayerNorm
    starts at 0: the model is what it was, to the last bit. At first this LayerNorm alone gets a gradient.

    Attributes:
      every: k; a block stands after layers k, 2 k, ..., L, so it must divide L.
    """

    every: int = 3

    def check(self, architecture: Architecture) -> None:
        layers = architecture.num_layers
        if self.every < 1 or layers % self.every:
            fitting = [str(k) for k in range(1, layers + 1) if layers % k == 0]
            raise UserError(
                f"a block after every {self.every} layers does not fit a model of {layers}; "
                f"let `every` be one of {', '.join(fitting)}"
            )

    def init(self, architecture: Architecture, key: jax.Array, base: Params) -> Params:
        """Copies of the layers that the blocks stand behind, LN2 at 0; nothing is random."""
        self.check(architecture)
        blocks = jax.tree.map(lambda x: x[self.every - 1 :: self.every], base["layers"])
        blocks["feed_forward"]["layer_norm"] = jax.tree.map(
            jnp.zeros_like, blocks["feed_forward"]["layer_norm"]
        )
        return blocks

    def block(
        self,
        layer: Callable[[Params, jax.Array], jax.Array],
        params: Params,
        hidden_BxTxD: jax.Array,
    ) -> jax.Array:
        return hidden_BxTxD + layer(params, hidden_BxTxD)

    def leaves(self) -> Leaves:
        """Those of a layer, without units: gates are for the old layers."""
        return tuple(
            Leaf(f"graft/{leaf.path.removeprefix('layers/')}", f"N{leaf.axes.removeprefix('L')}")
            for leaf in ENCODER
            if leaf.path.startswith("layers/")
        )
