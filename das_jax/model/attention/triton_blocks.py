"""Blocks of queries and of keys in a GPU's kernels: how they are read, and what happens where two meet."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from das_jax.model.attention.rule import PADDING, Rule
from das_jax.model.dropout import keep

LOG2E = math.log2(math.e)
"""Powers are those of 2, as the chip computes them."""

LOWEST = -0.7 * float(np.finfo(np.float32).max)
"""The score of a key that is not read: finite, and so is its difference to any other."""

PADDED = -1e30
"""What a score of padding is lowered by: nothing is left of the score."""

FIRST = np.int32(0)
"""The head of an array that has one."""


@dataclass(frozen=True)
class Plan:
    """What the kernels of a call know.

    Attributes:
      rule: what a token may read.
      length: of a text.
      size: of a head.
      sharing: query heads that read one key.
      apart: whether texts hold several documents.
    """

    rule: Rule
    length: int
    size: int
    sharing: int
    apart: bool

    @property
    def scale(self) -> float:
        return self.rule.scale_of(self.size)

    def visits(self, own: "Block", met: int, by_query: bool) -> tuple[Any, Any]:
        """The first block that a block meets, and the one behind the last.

        Args:
          own: the block.
          met: tokens of those that it meets.
          by_query: whether it is one of queries, else of keys.
        """
        reach = self.length if self.rule.reach is None else self.rule.reach
        before, behind = reach, 0 if self.rule.causal else reach
        if not by_query:
            before, behind = behind, before
        first: Any = 0
        last: Any = -(-self.length // met)
        if before < self.length:
            first = jax.lax.div(jnp.maximum(own.start - before, 0), met)
        if behind < self.length:
            last = jnp.minimum(jax.lax.div(own.start + (own.size - 1 + behind), met) + 1, last)
        return first, last


@dataclass(frozen=True)
class Block:
    """Tokens that stand side by side in a text.

    Attributes:
      start: the first one's place.
      size: how many, a power of 2.
      length: of the text; nothing is read or written behind it.
    """

    start: Any
    size: int
    length: int

    @property
    def places(self) -> jax.Array:
        return self.start + jnp.arange(self.size)

    def read(self, ref: Any, head: Any = FIRST, other: float = 0) -> jax.Array:
        """The tokens' numbers in an array of the text; `other` behind its end."""
        part = self._part(ref, head)
        if self.length % self.size == 0:
            return plgpu.load(part)
        return plgpu.load(part, mask=self._inside(ref), other=other)

    def write(self, ref: Any, numbers: jax.Array, head: Any = FIRST) -> None:
        mask = None if self.length % self.size == 0 else self._inside(ref)
        plgpu.store(self._part(ref, head), numbers.astype(ref.dtype), mask=mask)

    def _part(self, ref: Any, head: Any) -> Any:
        """Of [T], of [heads, T], or of [T, heads, K]."""
        tokens = pl.ds(self.start, self.size)
        index = {1: (tokens,), 2: (head, tokens), 3: (tokens, head, slice(None))}
        return ref.at[index[len(ref.shape)]]

    def _inside(self, ref: Any) -> jax.Array:
        inside = self.places < self.length
        return inside[:, None] if len(ref.shape) == 3 else inside


@dataclass(frozen=True)
class Meeting:
    """A block of queries and one of keys; of what is two-dimensional, queries are the rows, or the columns.

    Attributes:
      plan: of the call.
      bias: what is added to a score as the key is padding, or behind the end; None if documents are apart.
      readable: true where the query may read the key; None if that is a matter of the key alone.
      factor: of a weight under dropout, 0 where it is dropped; None without. One that is multiplied by takes
        fewer instructions than a choice, which the compiler would make among narrow numbers, one by one.
    """

    plan: Plan
    bias: jax.Array | None
    readable: jax.Array | None
    factor: jax.Array | None

    def logits(self, products: jax.Array) -> jax.Array:
        """Scores times log2(e) before the mask, of queries' and keys' products."""
        scale, rule = self.plan.scale, self.plan.rule
        if rule.cap is None:
            return products * (scale * LOG2E)
        return rule.capped(products * scale) * LOG2E

    def masked(self, logits: jax.Array) -> jax.Array:
        if self.bias is not None:
            logits = logits + self.bias
        return logits if self.readable is None else jnp.where(self.readable, logits, LOWEST)

    def dropped(self, x: jax.Array) -> jax.Array:
        """After dropout, the same whatever `x` is."""
        return x if self.factor is None else x * self.factor

    def to_products(self, to_scores: jax.Array, logits: jax.Array) -> jax.Array:
        """The gradient behind the scale, from that of scores after the cap."""
        rule = self.plan.rule
        return to_scores if rule.cap is None else rule.through_cap(to_scores, logits / LOG2E)


def meeting(
    plan: Plan, by_query: bool, head: Any, query: Block, key: Block, segments: Any, seed: Any
) -> Meeting:
    """Two blocks of a head that meet; rows are queries if `by_query`, else keys."""

    def along_queries(x: jax.Array) -> jax.Array:
        return x[:, None] if by_query else x[None]

    def along_keys(x: jax.Array) -> jax.Array:
        return x[None] if by_query else x[:, None]

    rule, bias, readable, factor = plan.rule, None, None, None
    # Another segment than that of padding, which would read what stands behind the end.
    key_segments = key.read(segments, other=PADDING - 1)
    if plan.apart:
        query_segments = query.read(segments, other=PADDING)
        readable = along_queries(query_segments) == along_keys(key_segments)
    else:
        lowered = jnp.where(key_segments == PADDING, PADDED, 0.0)
        bias = along_keys(jnp.where(key_segments < PADDING, -jnp.inf, lowered))
    if not rule.anywhere:
        near = rule.near(along_queries(query.places) - along_keys(key.places))
        readable = near if readable is None else readable & near
    if rule.dropout > 0:
        row = (head * plan.length + query.places) * plan.length
        place = along_queries(row.astype(jnp.uint32)) + along_keys(key.places.astype(jnp.uint32))
        kept = keep(place, seed[0], seed[1], rule.dropout)
        factor = jnp.where(kept, 1 / (1 - rule.dropout), 0.0)
    return Meeting(plan, bias, readable, factor)
