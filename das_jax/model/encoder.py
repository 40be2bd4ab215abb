"""The transformer encoder of BERT and RoBERTa: post-LayerNorm, layers scanned, gates and a graft as
arguments.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from das_jax.model.activations import ACTIVATIONS
from das_jax.model.architecture import Architecture
from das_jax.model.attention import ATTENTION, Rule
from das_jax.model.dense import dense
from das_jax.model.dropout import dropout, dropout_seeds
from das_jax.model.grafts.graft import Graft, Params
from das_jax.model.units import Units
from das_jax.precision import at_least_float32

KEPT = ("key", "value", "attention_output", "intermediate", "output", "sum")
"""What `selective` keeps of a layer, besides its input, as far as the backward pass needs it; the two outputs
only the gradient of a gate or of a graft does. The queries, one small product, and attention itself are
computed again, as are LayerNorms, activations and dropout, which cost next to nothing.
"""


def all_but_gathered(primitive: Any, *_: Any, **__: Any) -> bool:
    """Keeps everything but a layer's parameters that were put together, and cast."""
    return primitive.name not in ("all_gather", "convert_element_type")


REMAT_POLICIES = {
    "none": all_but_gathered,
    "selective": jax.checkpoint_policies.save_only_these_names(*KEPT),
    "full": jax.checkpoint_policies.nothing_saveable,
}


class Seeds(NamedTuple):
    """Dropout seeds of a layer, one of two words per example each, [B, 2]."""

    attention: jax.Array | None
    attention_output: jax.Array | None
    feed_forward: jax.Array | None


SITES = len(Seeds._fields)
NO_SEEDS = Seeds(*[None] * SITES)


def layer_norm(architecture: Architecture, dtype: jnp.dtype, name: str) -> nn.LayerNorm:
    """A LayerNorm whose statistics are float32; the slow variance, as the fast one cancels."""
    return nn.LayerNorm(
        epsilon=architecture.layer_norm_eps, dtype=dtype, use_fast_variance=False, name=name
    )


def gated(x_BxTxUxX: jax.Array, gate_U: jax.Array | None) -> jax.Array:
    """Multiplies units, axis 2 of `x`, by their gates: [U], or [B, U] for gates of every example's own.

    In float32, so that a gate's gradient, a sum over tokens, is accumulated in float32.
    """
    if gate_U is None:
        return x_BxTxUxX
    gate_BxU = gate_U if gate_U.ndim == 2 else gate_U[None]
    shape = (gate_BxU.shape[0], 1, gate_BxU.shape[1]) + (1,) * (x_BxTxUxX.ndim - 3)
    return (at_least_float32(x_BxTxUxX) * gate_BxU.reshape(shape)).astype(x_BxTxUxX.dtype)


def grafted(
    graft: Graft | None,
    params: Params | None,
    site: str,
    input: jax.Array,
    output: jax.Array,
    normalise: Callable[[jax.Array], jax.Array] | None = None,
) -> jax.Array:
    """What a graft makes of an output at a site; that output where there is no graft."""
    if graft is None or params is None:
        return output
    if normalise is None:
        return graft.at(site, params, input, output)
    return graft.before_sum(site, params, input, output, normalise)


def position_ids(architecture: Architecture, mask_BxT: jax.Array) -> jax.Array:
    """Rows of the position table. BERT counts all positions; RoBERTa counts real tokens, padding gets
    the pad row.
    """
    if architecture.family == "bert":
        positions_T = jnp.arange(mask_BxT.shape[1], dtype=jnp.int32)
        return jnp.broadcast_to(positions_T[None], mask_BxT.shape)
    real_BxT = mask_BxT.astype(jnp.int32)
    return jnp.cumsum(real_BxT, axis=1) * real_BxT + architecture.first_position - 1


class Embeddings(nn.Module):
    architecture: Architecture
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        tokens_BxT: jax.Array,
        mask_BxT: jax.Array,
        seed_Bx2: jax.Array | None,
        types_BxT: jax.Array | None = None,
        before_PxD: jax.Array | None = None,
    ) -> jax.Array:
        """The vectors of `before_PxD` and of the tokens; `mask` is of both."""
        arch = self.architecture
        if types_BxT is None:
            types_BxT = jnp.zeros_like(tokens_BxT)

        def table(rows: int, name: str) -> nn.Embed:
            init = nn.initializers.normal(arch.initializer_range)
            return nn.Embed(
                rows, arch.hidden_size, dtype=self.dtype, embedding_init=init, name=name
            )

        words_BxTxD = table(arch.vocab_size, "word")(tokens_BxT)
        if before_PxD is not None:
            shape = (len(words_BxTxD), *before_PxD.shape)
            words_BxTxD = jnp.concatenate(
                [jnp.broadcast_to(before_PxD[None], shape), words_BxTxD], axis=1
            )
            types_BxT = jnp.pad(types_BxT, ((0, 0), (len(before_PxD), 0)))
        summed_BxTxD = (
            words_BxTxD
            + table(arch.position_rows, "position")(position_ids(arch, mask_BxT))
            + table(arch.type_vocab_size, "token_type")(types_BxT)
        )
        hidden_BxTxD = layer_norm(arch, self.dtype, "layer_norm")(summed_BxTxD)
        return dropout(hidden_BxTxD, arch.hidden_dropout, seed_Bx2)


class Attention(nn.Module):
    """Self-attention, its output projection, residual and LayerNorm."""

    architecture: Architecture
    dtype: jnp.dtype
    attention: str
    graft: Graft | None = None

    @nn.compact
    def __call__(
        self,
        hidden_BxTxD: jax.Array,
        mask_BxT: jax.Array,
        seeds: Seeds,
        gate_H: jax.Array | None,
        graft: Params | None = None,
    ) -> jax.Array:
        arch = self.architecture
        at = partial(grafted, self.graft, graft)

        def heads(name: str) -> jax.Array:
            project = dense(arch, (arch.num_heads, arch.head_size), self.dtype, name)
            return checkpoint_name(at(name, hidden_BxTxD, project(hidden_BxTxD)), name)

        context_BxTxHxK = ATTENTION[self.attention](
            heads("query"),
            heads("key"),
            heads("value"),
            mask_BxT,
            Rule(dropout=arch.attention_dropout),
            seeds.attention,
        )
        context_BxTxHxK = at("context", hidden_BxTxD, context_BxTxHxK)
        project = dense(arch, arch.hidden_size, self.dtype, "output", axis=(-2, -1))
        context_BxTxHxK = gated(context_BxTxHxK, gate_H)
        output_BxTxD = at("attention_output", context_BxTxHxK, project(context_BxTxHxK))
        output_BxTxD = checkpoint_name(output_BxTxD, "attention_output")
        output_BxTxD = dropout(output_BxTxD, arch.hidden_dropout, seeds.attention_output)
        normalise = layer_norm(arch, self.dtype, "layer_norm")
        output_BxTxD = at("attention", hidden_BxTxD, output_BxTxD, normalise)
        return normalise(checkpoint_name(hidden_BxTxD + output_BxTxD, "sum"))


class FeedForward(nn.Module):
    """The two feed-forward projections, residual and LayerNorm."""

    architecture: Architecture
    dtype: jnp.dtype
    graft: Graft | None = None

    @nn.compact
    def __call__(
        self,
        hidden_BxTxD: jax.Array,
        seeds: Seeds,
        gate_F: jax.Array | None,
        gate_D: jax.Array | None,
        graft: Params | None = None,
    ) -> jax.Array:
        arch = self.architecture
        at = partial(grafted, self.graft, graft)
        activation = ACTIVATIONS[arch.activation]
        expand = dense(arch, arch.intermediate_size, self.dtype, "intermediate")
        contract = dense(arch, arch.hidden_size, self.dtype, "output")
        before_BxTxF = at("intermediate", hidden_BxTxD, expand(hidden_BxTxD))
        before_BxTxF = gated(checkpoint_name(before_BxTxF, "intermediate"), gate_F)
        after_BxTxF = activation(before_BxTxF)
        output_BxTxD = at("output", after_BxTxF, contract(after_BxTxF))
        output_BxTxD = gated(checkpoint_name(output_BxTxD, "output"), gate_D)
        output_BxTxD = dropout(output_BxTxD, arch.hidden_dropout, seeds.feed_forward)
        normalise = layer_norm(arch, self.dtype, "layer_norm")
        output_BxTxD = at("feed_forward", hidden_BxTxD, output_BxTxD, normalise)
        return normalise(checkpoint_name(hidden_BxTxD + output_BxTxD, "sum"))


class EncoderLayer(nn.Module):
    """One layer, in the form that `nn.scan` wants: (carry, ...) -> (carry, None)."""

    architecture: Architecture
    dtype: jnp.dtype
    attention: str
    graft: Graft | None = None

    @nn.compact
    def __call__(
        self,
        hidden_BxTxD: jax.Array,
        mask_BxT: jax.Array,
        seeds: Seeds,
        gates: Units | None,
        graft: Params | None = None,
    ) -> tuple[jax.Array, None]:
        arch, dtype = self.architecture, self.dtype
        gate_H, gate_F, gate_D = gates or (None, None, None)
        hidden_BxTxD = Attention(arch, dtype, self.attention, self.graft, name="attention")(
            hidden_BxTxD, mask_BxT, seeds, gate_H, graft
        )
        hidden_BxTxD = FeedForward(arch, dtype, self.graft, name="feed_forward")(
            hidden_BxTxD, seeds, gate_F, gate_D, graft
        )
        return hidden_BxTxD, None


class Encoder(nn.Module):
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
    ) -> jax.Array:
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
            tokens_BxT, mask_BxT, seed_Bx2, types_BxT, before_PxD
        )
        if every is None:
            hidden_BxTxD, _ = layers(hidden_BxTxD, mask_BxT, seeds, gates, graft)
            return hidden_BxTxD[:, prefix:] if prefix else hidden_BxTxD
        return through_blocks(
            self, self.variables["params"]["layers"], graft, hidden_BxTxD, mask_BxT, seeds, gates
        )


def layer_class(encoder: Encoder) -> Any:
    """`EncoderLayer`, its parameters put together and its activations kept as the encoder says."""
    layer, gather = EncoderLayer, encoder.gather
    if gather is not None:
        # Inside what is computed again, so that the backward pass gathers once more and nothing is kept.
        layer = nn.map_variables(
            layer, "params", lambda own: {"params": gather(own["params"])}, mutable=False
        )
    elif encoder.remat == "none":
        return layer
    # A loop cannot share what is computed twice; the unrolled layers would, and keep it.
    return nn.remat(layer, policy=REMAT_POLICIES[encoder.remat], prevent_cse=encoder.unrolled)


def stacked(encoder: Encoder, length: int, **place: Any) -> Any:
    """So many layers as one module, a loop over parameters, seeds, gates and the graft's parameters.

    Args:
      encoder: whose they are.
      length: how many.
      place: the name of the module, or `parent=None` for one that stands alone.
    """
    return nn.scan(
        layer_class(encoder),
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=(nn.broadcast, 0, 0, 0),
        length=length,
        unroll=length if encoder.unrolled else 1,
    )(encoder.architecture, encoder.dtype, encoder.attention, encoder.graft, **place)


def through_blocks(
    encoder: Encoder,
    layers: Params,
    blocks: Params | None,
    hidden_BxTxD: jax.Array,
    mask_BxT: jax.Array,
    seeds: Seeds,
    gates: Units | None,
) -> jax.Array:
    """A loop over groups of layers with a block behind each.

    The old layers and the blocks are arrays of their own, so that where the former are frozen no gradient
    of theirs is computed.

    Args:
      encoder: with a graft between its layers.
      layers: parameters, [L, ...].
      blocks: parameters, [G, ...].
      hidden_BxTxD: the embeddings.
      mask_BxT: true at real tokens.
      seeds: of the layers and then of the blocks, [L + G, B, 2].
      gates: of the layers; a block has none.
    """
    graft, count = encoder.graft, encoder.architecture.num_layers
    assert graft is not None
    assert graft.every is not None
    groups = count // graft.every
    plain = encoder.clone(graft=None, parent=None)
    old = stacked(plain, graft.every, parent=None)
    new = layer_class(plain.clone(gather=None))(
        plain.architecture, plain.dtype, plain.attention, parent=None
    )
    old_parts = jax.tree.map(
        lambda x: x.reshape(groups, graft.every, *x.shape[1:]),
        (layers, jax.tree.map(lambda x: x[:count], seeds), gates),
    )
    new_parts = blocks, jax.tree.map(lambda x: x[count:], seeds)

    def group(hidden_BxTxD: jax.Array, parts: Any) -> tuple[jax.Array, None]:
        (layers, seeds, gates), (block, block_seeds) = parts
        hidden_BxTxD, _ = old.apply({"params": layers}, hidden_BxTxD, mask_BxT, seeds, gates, None)

        def layer(params: Params, hidden_BxTxD: jax.Array) -> jax.Array:
            return new.apply({"params": params}, hidden_BxTxD, mask_BxT, block_seeds, None)[0]

        return graft.block(layer, block, hidden_BxTxD), None

    hidden_BxTxD, _ = jax.lax.scan(
        group, hidden_BxTxD, (old_parts, new_parts), unroll=groups if encoder.unrolled else 1
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
