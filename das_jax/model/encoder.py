"""The transformer encoder of BERT and RoBERTa: post-LayerNorm, layers scanned, gates as an argument."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from das_jax.model.architecture import Architecture
from das_jax.model.dropout import dropout, fold_each
from das_jax.model.units import Units
from das_jax.precision import at_least_float32

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "gelu_new": lambda x: nn.gelu(x, approximate=True),
    "gelu_pytorch_tanh": lambda x: nn.gelu(x, approximate=True),
    "relu": nn.relu,
    "silu": nn.silu,
}

REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}

EMBEDDING_SITE, ATTENTION_SITE, ATTENTION_OUTPUT_SITE, FEED_FORWARD_SITE = range(4)


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
        self, tokens_BxT: jax.Array, mask_BxT: jax.Array, keys_B: jax.Array | None
    ) -> jax.Array:
        arch = self.architecture

        def table(rows: int, name: str) -> nn.Embed:
            init = nn.initializers.normal(arch.initializer_range)
            return nn.Embed(
                rows, arch.hidden_size, dtype=self.dtype, embedding_init=init, name=name
            )

        summed_BxTxD = (
            table(arch.vocab_size, "word")(tokens_BxT)
            + table(arch.position_rows, "position")(position_ids(arch, mask_BxT))
            + table(arch.type_vocab_size, "token_type")(jnp.zeros_like(tokens_BxT))
        )
        hidden_BxTxD = layer_norm(arch, self.dtype, "layer_norm")(summed_BxTxD)
        return dropout(hidden_BxTxD, arch.hidden_dropout, keys_B, EMBEDDING_SITE)


def attention_weights(
    query_BxTxHxK: jax.Array, key_BxTxHxK: jax.Array, mask_BxT: jax.Array
) -> jax.Array:
    """Softmax over the real tokens, computed in float32; [B, H, T, T] in the queries' type."""
    scale = query_BxTxHxK.shape[-1] ** -0.5
    scores_BxHxTxT = at_least_float32(
        jnp.einsum("BTHK,BSHK->BHTS", query_BxTxHxK * scale, key_BxTxHxK)
    )
    lowest = jnp.finfo(scores_BxHxTxT.dtype).min
    scores_BxHxTxT = jnp.where(mask_BxT[:, None, None, :], scores_BxHxTxT, lowest)
    return jax.nn.softmax(scores_BxHxTxT, axis=-1).astype(query_BxTxHxK.dtype)


class Attention(nn.Module):
    """Self-attention, its output projection, residual and LayerNorm."""

    architecture: Architecture
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        hidden_BxTxD: jax.Array,
        mask_BxT: jax.Array,
        keys_B: jax.Array | None,
        gate_H: jax.Array | None,
    ) -> jax.Array:
        arch = self.architecture
        init = nn.initializers.normal(arch.initializer_range)

        def heads(name: str) -> jax.Array:
            features = (arch.num_heads, arch.head_size)
            return nn.DenseGeneral(features, dtype=self.dtype, kernel_init=init, name=name)(
                hidden_BxTxD
            )

        weights_BxHxTxT = attention_weights(heads("query"), heads("key"), mask_BxT)
        weights_BxHxTxT = dropout(weights_BxHxTxT, arch.attention_dropout, keys_B, ATTENTION_SITE)
        context_BxTxHxK = jnp.einsum("BHTS,BSHK->BTHK", weights_BxHxTxT, heads("value"))
        project = nn.DenseGeneral(
            arch.hidden_size, axis=(-2, -1), dtype=self.dtype, kernel_init=init, name="output"
        )
        output_BxTxD = project(gated(context_BxTxHxK, gate_H))
        output_BxTxD = dropout(output_BxTxD, arch.hidden_dropout, keys_B, ATTENTION_OUTPUT_SITE)
        return layer_norm(arch, self.dtype, "layer_norm")(hidden_BxTxD + output_BxTxD)


class FeedForward(nn.Module):
    """The two feed-forward projections, residual and LayerNorm."""

    architecture: Architecture
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        hidden_BxTxD: jax.Array,
        keys_B: jax.Array | None,
        gate_F: jax.Array | None,
        gate_D: jax.Array | None,
    ) -> jax.Array:
        arch = self.architecture
        init = nn.initializers.normal(arch.initializer_range)
        activation = ACTIVATIONS[arch.activation]

        def project(features: int, name: str) -> nn.Dense:
            return nn.Dense(features, dtype=self.dtype, kernel_init=init, name=name)

        before_BxTxF = gated(project(arch.intermediate_size, "intermediate")(hidden_BxTxD), gate_F)
        output_BxTxD = gated(project(arch.hidden_size, "output")(activation(before_BxTxF)), gate_D)
        output_BxTxD = dropout(output_BxTxD, arch.hidden_dropout, keys_B, FEED_FORWARD_SITE)
        return layer_norm(arch, self.dtype, "layer_norm")(hidden_BxTxD + output_BxTxD)


class EncoderLayer(nn.Module):
    """One layer, in the form that `nn.scan` wants: (carry, ...) -> (carry, None)."""

    architecture: Architecture
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        hidden_BxTxD: jax.Array,
        mask_BxT: jax.Array,
        keys_B: jax.Array | None,
        layer: jax.Array,
        gates: Units | None,
    ) -> tuple[jax.Array, None]:
        gate_H, gate_F, gate_D = gates or (None, None, None)
        keys_B = fold_each(keys_B, layer)
        hidden_BxTxD = Attention(self.architecture, self.dtype, name="attention")(
            hidden_BxTxD, mask_BxT, keys_B, gate_H
        )
        hidden_BxTxD = FeedForward(self.architecture, self.dtype, name="feed_forward")(
            hidden_BxTxD, keys_B, gate_F, gate_D
        )
        return hidden_BxTxD, None


class Encoder(nn.Module):
    """Embeddings and layers; parameters `embeddings/...` and `layers/...`, the latter stacked [L, ...]."""

    architecture: Architecture
    dtype: jnp.dtype
    remat: str = "none"

    @nn.compact
    def __call__(
        self,
        tokens_BxT: jax.Array,
        mask_BxT: jax.Array,
        keys_B: jax.Array | None = None,
        gates: Units | None = None,
    ) -> jax.Array:
        arch = self.architecture
        layer = EncoderLayer
        if self.remat != "none":
            layer = nn.remat(layer, policy=REMAT_POLICIES[self.remat], prevent_cse=False)
        layers = nn.scan(
            layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, nn.broadcast, 0, 0),
            length=arch.num_layers,
        )(arch, self.dtype, name="layers")
        if gates is not None:
            gates = Units(*(layers_first(gate) for gate in gates))
        mask_BxT = mask_BxT.astype(bool)
        hidden_BxTxD = Embeddings(arch, self.dtype, name="embeddings")(
            tokens_BxT, mask_BxT, fold_each(keys_B, arch.num_layers)
        )
        hidden_BxTxD, _ = layers(hidden_BxTxD, mask_BxT, keys_B, jnp.arange(arch.num_layers), gates)
        return hidden_BxTxD


def layers_first(gate: jax.Array) -> jax.Array:
    """[L, U] as it is; [B, L, U] to [L, B, U], for the scan over layers."""
    return gate if gate.ndim == 2 else gate.swapaxes(0, 1)
