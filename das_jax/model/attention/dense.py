"""Attention as matrix products, on every platform: softmax(Q K^T / sqrt(K)) V, dropout on the weights."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from das_jax.model.attention.rule import Rule, segments_of
from das_jax.model.dropout import dropout
from das_jax.precision import at_least_float32


def dense_attention(
    query_BxTxHxK: jax.Array,
    key_BxTxGxK: jax.Array,
    value_BxTxGxK: jax.Array,
    mask_BxT: jax.Array,
    rule: Rule,
    seed_Bx2: jax.Array | None = None,
    segments_BxT: jax.Array | None = None,
) -> jax.Array:
    """The context vectors, [B, T, H, K]. The weights are an array [B, H, T, T], kept for the backward
    pass in the queries' type, before dropout; the softmax is float32.

    Args:
      query_BxTxHxK: what each token looks for.
      key_BxTxGxK: what each token is found by. Query head h reads key-value head h // (H / G).
      value_BxTxGxK: what it is read for.
      mask_BxT: true at real tokens; the others are not read by these.
      rule: what a token may read, and how scores become weights.
      seed_Bx2: every example's seed for dropout on the weights; None switches it off.
      segments_BxT: the number of each token's document in its text, int32; a token reads only its own
        document. None: the text is one.
    """
    rule = rule.within(query_BxTxHxK.shape[1])
    queries = _grouped(query_BxTxHxK, key_BxTxGxK)
    context = _attend(rule, queries, key_BxTxGxK, value_BxTxGxK, mask_BxT, seed_Bx2, segments_BxT)
    return context.reshape(query_BxTxHxK.shape)


def _grouped(query_BxTxHxK: jax.Array, key_BxTxGxK: jax.Array) -> jax.Array:
    """The queries as [B, T, G, R, K], the R of a group reading one key; as they are if each has its own."""
    batch, length, heads, size = query_BxTxHxK.shape
    groups = key_BxTxGxK.shape[2]
    if heads == groups:
        return query_BxTxHxK
    return query_BxTxHxK.reshape(batch, length, groups, heads // groups, size)


def _heads(query: jax.Array) -> tuple[str, str]:
    """The letters of a query's and of a key's heads."""
    return ("GR", "G") if query.ndim == 5 else ("H", "H")


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
    rule: Rule,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask_BxT: jax.Array,
    seed_Bx2: jax.Array | None,
    segments_BxT: jax.Array | None,
) -> jax.Array:
    context, _ = _attention_forward(rule, query, key, value, mask_BxT, seed_Bx2, segments_BxT)
    return context


def _scores(rule: Rule, query: jax.Array, key: jax.Array) -> jax.Array:
    """Every query's score of every key, float32, before the mask; [B, H, T, T] or [B, G, R, T, T]."""
    many, one = _heads(query)
    scaled = query * rule.scale_of(query.shape[-1])
    return rule.capped(at_least_float32(jnp.einsum(f"BT{many}K,BS{one}K->B{many}TS", scaled, key)))


def _readable(
    rule: Rule, mask_BxT: jax.Array, segments_BxT: jax.Array | None, axes: int
) -> jax.Array:
    """True where a query may read a key; of as many axes as the scores, those of heads have one element."""
    if rule.anywhere and segments_BxT is None:
        return jnp.expand_dims(mask_BxT, range(1, axes - 1))
    of_BxT = segments_of(mask_BxT, segments_BxT)
    readable_BxTxT = of_BxT[:, :, None] == of_BxT[:, None]
    if not rule.anywhere:
        positions_T = jnp.arange(mask_BxT.shape[1])
        readable_BxTxT &= rule.near(positions_T[:, None] - positions_T[None])[None]
    return jnp.expand_dims(readable_BxTxT, range(1, axes - 2))


def _weights(
    rule: Rule, query: jax.Array, key: jax.Array, mask: jax.Array, segments: jax.Array | None
) -> jax.Array:
    """Softmax over what may be read, computed in float32; in the queries' type."""
    scores = _scores(rule, query, key)
    # Finite: where a query may read nothing, as in a text of padding alone, its weights are all equal.
    lowest = jnp.finfo(scores.dtype).min
    scores = jnp.where(_readable(rule, mask, segments, scores.ndim), scores, lowest)
    return jax.nn.softmax(scores, axis=-1).astype(query.dtype)


def _attention_forward(
    rule: Rule, query: Any, key: Any, value: Any, mask: Any, seed: Any, segments: Any
) -> tuple:
    many, one = _heads(query)
    weights = _weights(rule, query, key, mask, segments)
    dropped = dropout(weights, rule.dropout, seed)
    context = jnp.einsum(f"B{many}TS,BS{one}K->BT{many}K", dropped, value)
    return context, (query, key, value, mask, seed, segments, weights, context)


def _attention_backward(rule: Rule, kept: tuple, cotangent: jax.Array) -> tuple:
    query, key, value, mask, seed, segments, weights, context = kept
    many, one = _heads(query)
    # Behind the barrier the compiler cannot know that this is the same dropout, and keep its result.
    seed = jax.lax.optimization_barrier(seed)
    dropped = dropout(weights, rule.dropout, seed)
    to_value = jnp.einsum(f"B{many}TS,BT{many}K->BS{one}K", dropped, cotangent)
    to_dropped = jnp.einsum(f"BT{many}K,BS{one}K->B{many}TS", cotangent, value)
    # The softmax's own sum over S of weights times cotangents, which dropout does not change.
    sum_BxTxH = jnp.sum(at_least_float32(cotangent) * at_least_float32(context), axis=-1)
    to_weights = at_least_float32(dropout(to_dropped, rule.dropout, seed))
    to_scores = at_least_float32(weights) * (to_weights - jnp.moveaxis(sum_BxTxH, 1, -1)[..., None])
    if rule.cap is not None:
        to_scores = rule.through_cap(to_scores, _scores(rule, query, key))
    to_scores = (to_scores * rule.scale_of(query.shape[-1])).astype(query.dtype)
    to_query = jnp.einsum(f"B{many}TS,BS{one}K->BT{many}K", to_scores, key)
    to_key = jnp.einsum(f"B{many}TS,BT{many}K->BS{one}K", to_scores, query)
    no_gradients = jax.tree.map(
        lambda x: np.zeros(x.shape, jax.dtypes.float0), (mask, seed, segments)
    )
    return to_query, to_key, to_value, *no_gradients


_attend.defvjp(_attention_forward, _attention_backward)
