"""The transformer: embeddings and a loop over layers, gates and a graft as arguments."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from das_jax.model.architecture import Architecture
from das_jax.model.attention import KeyValues
from das_jax.model.attention.flash import FLASH
from das_jax.model.block import NO_SEEDS, SITES, Block, Form, Places, Seeds, form_of, length_with
from das_jax.model.dropout import dropout_seeds
from das_jax.model.embeddings import Embeddings
from das_jax.model.grafts.graft import Graft, Params
from das_jax.model.norms import norm
from das_jax.model.rotary import Turns, turns
from das_jax.model.units import Units

KEPT = ("key", "value", "attention_output", "gate", "intermediate", "output", "sum")
"""What `selective` keeps of a layer, besides its input, as far as the backward pass needs it; the two outputs
only the gradient of a gate or of a graft does. The queries, one small product, and attention itself are
computed again, as are LayerNorms, activations and dropout, which cost next to nothing. Attention in blocks
takes long, so what its kernel read and gave is kept, too.
"""


def all_but_gathered(primitive: Any, *_: Any, **__: Any) -> bool:
    """Keeps everything but a layer's parameters that were put together, and cast."""
    return primitive.name not in ("all_gather", "convert_element_type")


REMAT_POLICIES = {
    "none": all_but_gathered,
    "selective": jax.checkpoint_policies.save_only_these_names(*KEPT, FLASH),
    "full": jax.checkpoint_policies.nothing_saveable,
}


class Transformer(nn.Module):
    """Embeddings and layers; parameters `embeddings/...` and `layers/...`, the latter stacked [L, ...].

    Those of a graft are an argument.
    """

    architecture: Architecture
    dtype: jnp.dtype
    remat: str = "none"
    unrolled: bool = False
    attention: str = "dense"
    graft: Graft | None = None
    gather: Callable[[Params], Params] | None = None

    @nn.compact
    def __call__(
        self,
        tokens_BxT: jax.Array,
        mask_BxT: jax.Array,
        keys_B: jax.Array | None = None,
        gates: Units | None = None,
        types_BxT: jax.Array | None = None,
        graft: Params | None = None,
        segments_BxT: jax.Array | None = None,
        positions_BxT: jax.Array | None = None,
        past: KeyValues | None = None,
    ) -> tuple[jax.Array, KeyValues | None]:
        """The last hidden state, [B, T, D], and of all layers what `Block` keeps, [L, ...]."""
        arch = self.architecture
        every = None if self.graft is None else self.graft.every
        prefix = 0 if self.graft is None else self.graft.prefix
        blocks = 0 if every is None else arch.num_layers // every
        layers = stacked(self, arch.num_layers, name="layers")
        if gates is not None:
            gates = Units(*(layers_first(gate) for gate in gates))
        seed_Bx2, seeds = split_seeds(keys_B, arch.num_layers + blocks)
        mask_BxT = mask_BxT.astype(bool)
        before_PxD = None
        if self.graft is not None and prefix:
            assert graft is not None
            # Inside the layers there is nothing of it.
            before_PxD, graft = self.graft.before(graft), None
            mask_BxT = jnp.pad(mask_BxT, ((0, 0), (prefix, 0)), constant_values=True)
        hidden_BxTxD = Embeddings(arch, self.dtype, name="embeddings")(
            tokens_BxT, mask_BxT, seed_Bx2, types_BxT, before_PxD, positions_BxT
        )
        length, kept = length_with(past, hidden_BxTxD.shape[1]), None
        places = Places(
            mask_BxT,
            segments_BxT,
            turns_of(arch, length, positions_BxT),
            None if past is None else positions_BxT,
        )
        form = form_of(arch, length)
        if every is None:
            hidden_BxTxD, kept = layers(hidden_BxTxD, places, seeds, gates, graft, form, past)
            hidden_BxTxD = hidden_BxTxD[:, prefix:] if prefix else hidden_BxTxD
        else:
            own = self.variables["params"]["layers"]
            hidden_BxTxD = through_blocks(
                self, own, graft, hidden_BxTxD, places, seeds, gates, form
            )
        if arch.placement == "post":
            return hidden_BxTxD, kept
        return norm(arch, self.dtype, "final_norm")(hidden_BxTxD), kept


def turns_of(
    architecture: Architecture, length: int, positions_BxT: jax.Array | None
) -> Turns | None:
    """What turns queries and keys, computed once for all layers; None without rotary positions."""
    if not architecture.rotary:
        return None
    if positions_BxT is None:
        positions_BxT = jnp.arange(length)[None]
    return turns(architecture.rotary, architecture.head_size, positions_BxT)


def layer_class(transformer: Transformer) -> Any:
    """`Block`, its parameters put together and its activations kept as the transformer says."""
    layer, gather = Block, transformer.gather
    if gather is not None:
        # Inside what is computed again, so that the backward pass gathers once more and nothing is kept.
        layer = nn.map_variables(
            layer, "params", lambda own: {"params": gather(own["params"])}, mutable=False
        )
    elif transformer.remat == "none":
        return layer
    # A loop cannot share what is computed twice; the unrolled layers would, and keep it.
    return nn.remat(
        layer, policy=REMAT_POLICIES[transformer.remat], prevent_cse=transformer.unrolled
    )


def stacked(transformer: Transformer, length: int, **place: Any) -> Any:
    """So many layers as one module, a loop over parameters, seeds, gates, the graft's parameters, the forms
    and the past.

    Args:
      transformer: whose they are.
      length: how many.
      place: the name of the module, or `parent=None` for one that stands alone.
    """
    return nn.scan(
        layer_class(transformer),
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=(nn.broadcast, 0, 0, 0, 0, 0),
        length=length,
        unroll=length if transformer.unrolled else 1,
    )(
        transformer.architecture,
        transformer.dtype,
        transformer.attention,
        transformer.graft,
        **place,
    )


def through_blocks(
    transformer: Transformer,
    layers: Params,
    blocks: Params | None,
    hidden_BxTxD: jax.Array,
    places: Places,
    seeds: Seeds,
    gates: Units | None,
    form: Form | None = None,
) -> jax.Array:
    """A loop over groups of layers with a block behind each.

    The old layers and the blocks are arrays of their own, so that where the former are frozen no gradient
    of theirs is computed.

    Args:
      transformer: with a graft between its layers.
      layers: parameters, [L, ...].
      blocks: parameters, [N, ...].
      hidden_BxTxD: the embeddings.
      places: of the tokens.
      seeds: of the layers and then of the blocks, [L + N, B, 2].
      gates: of the layers; a block has none.
      form: of the layers; a block has that of the layer before it.
    """
    graft, count = transformer.graft, transformer.architecture.num_layers
    assert graft is not None
    every = graft.every
    assert every is not None
    groups = count // every
    plain = transformer.clone(graft=None, parent=None)
    old = stacked(plain, every, parent=None)
    new = layer_class(plain.clone(gather=None))(
        plain.architecture, plain.dtype, plain.attention, parent=None
    )
    old_parts = jax.tree.map(
        lambda x: x.reshape(groups, every, *x.shape[1:]),
        (layers, jax.tree.map(lambda x: x[:count], seeds), gates, form),
    )
    last_of_group = jax.tree.map(lambda x: x[every - 1 :: every], form)
    new_parts = blocks, jax.tree.map(lambda x: x[count:], seeds), last_of_group

    def group(hidden_BxTxD: jax.Array, parts: Any) -> tuple[jax.Array, None]:
        (layers, seeds, gates, form), (block, block_seeds, block_form) = parts
        hidden_BxTxD, _ = old.apply(
            {"params": layers}, hidden_BxTxD, places, seeds, gates, None, form, None
        )

        def layer(params: Params, hidden_BxTxD: jax.Array) -> jax.Array:
            rest = places, block_seeds, None, None, block_form
            return new.apply({"params": params}, hidden_BxTxD, *rest)[0]

        return graft.block(layer, block, hidden_BxTxD), None

    hidden_BxTxD, _ = jax.lax.scan(
        group, hidden_BxTxD, (old_parts, new_parts), unroll=groups if transformer.unrolled else 1
    )
    return hidden_BxTxD


def split_seeds(keys_B: jax.Array | None, num_layers: int) -> tuple[jax.Array | None, Seeds]:
    """The dropout seeds of the embeddings, [B, 2], and of the layers, [L, B, 2]; None without keys."""
    if keys_B is None:
        return None, NO_SEEDS
    seeds_SxBx2 = dropout_seeds(keys_B, 1 + SITES * num_layers).swapaxes(0, 1)
    return seeds_SxBx2[0], Seeds(*(seeds_SxBx2[1 + site :: SITES] for site in range(SITES)))


def layers_first(gate: jax.Array) -> jax.Array:
    """[L, U] as it is; [B, L, U] to [L, B, U], for the scan over layers."""
    return gate if gate.ndim == 2 else gate.swapaxes(0, 1)
