"""Where a time prefix stands in a chunk of tokens: it is read and never predicted."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from das_jax.data.time_prefix import PrefixTokens

ANYTHING = -1


def in_prefix(tokens_BxT: jax.Array, special_BxT: jax.Array, prefix: PrefixTokens) -> jax.Array:
    """True at the tokens of prefixes, [..., T].

    A prefix stands behind a boundary and ends with its closing tokens. The cut between two chunks may go
    through one, so what lies beyond a chunk's ends is taken for whatever fits: no token of a prefix is
    missed, and rarely a few of a text that reads like one are left out too.

    Args:
      tokens_BxT: chunks, [..., T].
      special_BxT: true at special tokens.
      prefix: as the tokenizer spells it.
    """
    length, last = tokens_BxT.shape[-1], tokens_BxT.ndim - 1
    at_T = jnp.broadcast_to(jnp.arange(length), tokens_BxT.shape)
    ends_BxT = (at_T == 0) | (at_T == length - 1)
    text_BxT = jnp.where(ends_BxT, ANYTHING, tokens_BxT)

    behind_BxT = jnp.isin(_moved(tokens_BxT, -1), jnp.asarray(prefix.boundaries, tokens_BxT.dtype))
    opens_BxT = behind_BxT & ~special_BxT & _spelled(text_BxT, prefix.opens, 0)
    closes_BxT = _spelled(text_BxT, prefix.closes, 1 - len(prefix.closes)) & ~special_BxT

    opened_BxT = jax.lax.cummax(jnp.where(opens_BxT, at_T, -1), axis=last)
    closed_BxT = jax.lax.cummax(jnp.where(closes_BxT, at_T, -1), axis=last)
    closed_BxT = _moved(closed_BxT, -1)
    inside_BxT = (
        (opened_BxT >= 0) & (at_T - opened_BxT < prefix.longest) & (closed_BxT < opened_BxT)
    )

    # What the chunk before began: up to the last closing token that can be its end.
    unbroken_BxT = jnp.cumsum(special_BxT & (at_T > 0), axis=last) == 0
    rest_BxT = closes_BxT & unbroken_BxT & (at_T < prefix.longest)
    rest_Bx1 = jnp.max(jnp.where(rest_BxT, at_T, 0), axis=last, keepdims=True)
    return (inside_BxT | (at_T <= rest_Bx1)) & ~special_BxT


def _moved(x_BxT: jax.Array, by: int) -> jax.Array:
    """What stands `by` places further on; anything beyond the ends."""
    length, around = x_BxT.shape[-1], [(0, 0)] * (x_BxT.ndim - 1)
    padded = jnp.pad(x_BxT, [*around, (abs(by), abs(by))], constant_values=ANYTHING)
    return padded[..., abs(by) + by : abs(by) + by + length]


def _spelled(text_BxT: jax.Array, tokens: Sequence[int], start: int) -> jax.Array:
    """Whether these tokens stand in a row from `start` places further on."""
    fits = jnp.ones(text_BxT.shape, bool)
    for by, token in enumerate(tokens, start):
        there = _moved(text_BxT, by)
        fits &= (there == token) | (there == ANYTHING)
    return fits
