"""The embeddings of words, places and token types, their sum, its norm and dropout."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from das_jax.model.architecture import Architecture
from das_jax.model.block import rate_of
from das_jax.model.dropout import dropout
from das_jax.model.norms import norm


def position_ids(
    architecture: Architecture, mask_BxT: jax.Array, positions_BxT: jax.Array | None
) -> jax.Array:
    """Rows of the position table. BERT counts all places; RoBERTa counts real tokens, padding gets the pad
    row.
    """
    if positions_BxT is not None:
        return positions_BxT + architecture.first_position
    if architecture.first_position == 0:
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
        positions_BxT: jax.Array | None = None,
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
        if arch.scaled_embedding:
            words_BxTxD = words_BxTxD * jnp.asarray(arch.hidden_size**0.5, self.dtype)
        if before_PxD is not None:
            shape = (len(words_BxTxD), *before_PxD.shape)
            words_BxTxD = jnp.concatenate(
                [jnp.broadcast_to(before_PxD[None], shape), words_BxTxD], axis=1
            )
            types_BxT = jnp.pad(types_BxT, ((0, 0), (len(before_PxD), 0)))
        hidden_BxTxD = words_BxTxD
        if arch.position_rows:
            rows_BxT = position_ids(arch, mask_BxT, positions_BxT)
            hidden_BxTxD = hidden_BxTxD + table(arch.position_rows, "position")(rows_BxT)
        if arch.type_vocab_size:
            hidden_BxTxD = hidden_BxTxD + table(arch.type_vocab_size, "token_type")(types_BxT)
        if arch.embedding_norm:
            hidden_BxTxD = norm(arch, self.dtype, "layer_norm")(hidden_BxTxD)
        return dropout(hidden_BxTxD, rate_of(arch, arch.embedding_dropout), seed_Bx2)
