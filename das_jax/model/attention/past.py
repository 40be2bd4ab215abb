"""Attention of tokens that go on with a text whose keys and values are kept."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from das_jax.model.attention.rule import Rule
from das_jax.precision import at_least_float32


class KeyValues(NamedTuple):
    """What tokens are read by, kept for those that follow.

    Attributes:
      key_BxGxSxK: what a token is found by, in the slot of its place in its text; [L, B, G, S, K] of all
        layers.
      value_BxGxSxK: what it is read for.
    """

    key_BxGxSxK: jax.Array
    value_BxGxSxK: jax.Array

    @property
    def slots(self) -> int:
        """S."""
        return self.key_BxGxSxK.shape[-2]


def attention_with_past(
    query_BxTxHxK: jax.Array,
    key_BxTxGxK: jax.Array,
    value_BxTxGxK: jax.Array,
    past: KeyValues,
    positions_BxT: jax.Array,
    rule: Rule,
) -> jax.Array:
    """The context vectors of tokens that go on with texts, [B, T, H, K], as `dense_attention` has them of the
    whole texts. The softmax is float32.

    Args:
      query_BxTxHxK: what each new token looks for.
      key_BxTxGxK: what each is found by.
      value_BxTxGxK: what it is read for.
      past: of the texts so far, of one layer. What stands in a slot from the first new token's on is not
        read, but must be finite.
      positions_BxT: the places of the new tokens in their texts, which stand side by side.
      rule: what a token may read: itself and what stands before it.
    """
    batch, length, heads, size = query_BxTxHxK.shape
    groups, slots = key_BxTxGxK.shape[2], past.slots
    queries = query_BxTxHxK.reshape(batch, length, groups, heads // groups, size)
    queries = queries * rule.scale_of(size)
    products = (
        jnp.einsum("BTGRK,BGSK->BGRTS", queries, past.key_BxGxSxK),
        jnp.einsum("BTGRK,BSGK->BGRTS", queries, key_BxTxGxK),
    )
    scores = rule.capped(at_least_float32(jnp.concatenate(products, axis=-1)))
    slots_BxS = jnp.broadcast_to(jnp.arange(slots)[None], (batch, slots))
    at_BxS = jnp.concatenate([slots_BxS, positions_BxT], axis=1)
    known_BxS = jnp.concatenate(
        [slots_BxS < positions_BxT[:, :1], jnp.ones((batch, length), bool)], axis=1
    )
    readable_BxTxS = rule.near(positions_BxT[:, :, None] - at_BxS[:, None]) & known_BxS[:, None]
    lowest = jnp.finfo(scores.dtype).min
    scores = jnp.where(readable_BxTxS[:, None, None], scores, lowest)
    weights = jax.nn.softmax(scores, axis=-1).astype(query_BxTxHxK.dtype)
    context = jnp.einsum("BGRTS,BGSK->BTGRK", weights[..., :slots], past.value_BxGxSxK)
    context += jnp.einsum("BGRTS,BSGK->BTGRK", weights[..., slots:], value_BxTxGxK)
    return context.reshape(query_BxTxHxK.shape)
