"""Attention: every token reads all tokens of its text, softmax(Q K^T / sqrt(K)) V, dropout on the weights."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from das_jax.model.dropout import dropout
from das_jax.precision import at_least_float32


def dense_attention(
    query_BxTxHxK: jax.Array,
    key_BxTxHxK: jax.Array,
    value_BxTxHxK: jax.Array,
    mask_BxT: jax.Array,
    rate: float,
    seed_Bx2: jax.Array | None,
) -> jax.Array:
    """The context vectors, [B, T, H, K]. The weights are an array [B, H, T, T], kept for the backward
    pass in the queries' type, before dropout; the softmax is float32.

    Args:
      query_BxTxHxK: what each token looks for.
      key_BxTxHxK: what each token is found by.
      value_BxTxHxK: what it is read for.
      mask_BxT: true at real tokens; the others are not read.
      rate: of dropout on the weights.
      seed_Bx2: every example's seed for it; None switches it off.
    """
    return _attend(rate, query_BxTxHxK, key_BxTxHxK, value_BxTxHxK, mask_BxT, seed_Bx2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
    rate: float,
    query_BxTxHxK: jax.Array,
    key_BxTxHxK: jax.Array,
    value_BxTxHxK: jax.Array,
    mask_BxT: jax.Array,
    seed_Bx2: jax.Array | None,
) -> jax.Array:
    context_BxTxHxK, _ = _attention_forward(
        rate, query_BxTxHxK, key_BxTxHxK, value_BxTxHxK, mask_BxT, seed_Bx2
    )
    return context_BxTxHxK


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


def _attention_forward(
    rate: float, query: Any, key: Any, value: Any, mask: Any, seed: Any
) -> tuple:
    weights_BxHxTxT = attention_weights(query, key, mask)
    dropped_BxHxTxT = dropout(weights_BxHxTxT, rate, seed)
    context_BxTxHxK = jnp.einsum("BHTS,BSHK->BTHK", dropped_BxHxTxT, value)
    return context_BxTxHxK, (query, key, value, mask, seed, weights_BxHxTxT, context_BxTxHxK)


def _attention_backward(rate: float, kept: tuple, cotangent_BxTxHxK: jax.Array) -> tuple:
    query, key, value, mask, seed, weights_BxHxTxT, context_BxTxHxK = kept
    # Behind the barrier the compiler cannot know that this is the same dropout, and keep its result.
    seed = jax.lax.optimization_barrier(seed)
    dropped_BxHxTxT = dropout(weights_BxHxTxT, rate, seed)
    to_value = jnp.einsum("BHTS,BTHK->BSHK", dropped_BxHxTxT, cotangent_BxTxHxK)
    to_dropped_BxHxTxT = jnp.einsum("BTHK,BSHK->BHTS", cotangent_BxTxHxK, value)
    # The softmax's own sum over S of weights times cotangents, which dropout does not change.
    sum_BxTxH = jnp.sum(
        at_least_float32(cotangent_BxTxHxK) * at_least_float32(context_BxTxHxK), axis=-1
    )
    to_weights_BxHxTxT = at_least_float32(dropout(to_dropped_BxHxTxT, rate, seed))
    to_scores_BxHxTxT = at_least_float32(weights_BxHxTxT) * (
        to_weights_BxHxTxT - sum_BxTxH.swapaxes(1, 2)[..., None]
    )
    to_scores_BxHxTxT = (to_scores_BxHxTxT * query.shape[-1] ** -0.5).astype(query.dtype)
    to_query = jnp.einsum("BHTS,BSHK->BTHK", to_scores_BxHxTxT, key)
    to_key = jnp.einsum("BHTS,BTHK->BSHK", to_scores_BxHxTxT, query)
    no_gradients = jax.tree.map(lambda x: np.zeros(x.shape, jax.dtypes.float0), (mask, seed))
    return to_query, to_key, to_value, *no_gradients


_attend.defvjp(_attention_forward, _attention_backward)
