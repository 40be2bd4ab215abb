"""The embeddings of words, places and token types, their sum, its norm and dropout."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from das_jax.model.architecture import Architecture
from das_jax.model.block import rate_of
from das_jax.model.dropout import dropout
from das_jax.model.norms import norm
from das_jax.precision import at_least_float32


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


class Table(nn.Module):
    """Rows of a matrix by their numbers.

    Attributes:
      shape: rows and features.
      initializer_range: the standard deviation at the start.
      dtype: of what is returned.
    """

    shape: tuple[int, int]
    initializer_range: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, rows_BxT: jax.Array) -> jax.Array:
        init = nn.initializers.normal(self.initializer_range)
        table_RxD = self.param("embedding", init, self.shape, jnp.float32)
        if self.shape[0] == 1:
            row_D = table_RxD[0].astype(self.dtype)
            return jnp.broadcast_to(row_D[None, None], (*rows_BxT.shape, self.shape[1]))
        return _rows(self.dtype, table_RxD, rows_BxT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _rows(dtype: jnp.dtype, table_RxD: jax.Array, rows_BxT: jax.Array) -> jax.Array:
    return jnp.take(table_RxD.astype(dtype), rows_BxT, axis=0)


def _rows_forward(dtype: jnp.dtype, table_RxD: jax.Array, rows_BxT: jax.Array) -> tuple:
    return _rows(dtype, table_RxD, rows_BxT), (table_RxD, rows_BxT)


def _rows_backward(dtype: jnp.dtype, kept: tuple, cotangent_BxTxD: jax.Array) -> tuple:
    # A batch has thousands of [MASK]: their sum needs float32. In bfloat16 an H100 also took 29 ms to add
    # 16,384 rows, as long as all else in a train step together, where many meet in one.
    table_RxD, rows_BxT = kept
    sums_RxD = jnp.zeros_like(at_least_float32(table_RxD))
    sums_RxD = sums_RxD.at[rows_BxT].add(cotangent_BxTxD.astype(sums_RxD.dtype))
    return sums_RxD.astype(table_RxD.dtype), np.zeros(rows_BxT.shape, jax.dtypes.float0)


_rows.defvjp(_rows_forward, _rows_backward)


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

        def table(rows: int, name: str) -> Table:
            return Table((rows, arch.hidden_size), arch.initializer_range, self.dtype, name=name)

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
