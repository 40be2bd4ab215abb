"""Blocks of tokens of which those of queries meet those of keys, and what may be read where two meet."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from das_jax.model.attention.kernel import LANES, product
from das_jax.model.attention.rule import Rule
from das_jax.model.dropout import keep

BLOCK = 512
"""The most tokens of a block: every block costs some fixed time."""

NARROW = 256
"""The most where a window reaches less than `BLOCK`: all of a block is computed, beyond the window, too."""

LOWEST = -0.7 * float(np.finfo(np.float32).max)
"""The score of a key that is not read: finite, and so is its difference to any other."""


@dataclass(frozen=True)
class Plan:
    """How attention is cut into blocks.

    Attributes:
      rule: what a token may read.
      length: of a text before it was filled up to whole blocks; dropout counts by it.
      block: tokens of a block.
      blocks: of a text.
    """

    rule: Rule
    length: int
    block: int
    blocks: int

    @property
    def before(self) -> int:
        """How many blocks of keys before its own a block of queries may read."""
        reach = self.length if self.rule.reach is None else self.rule.reach
        return min(-(-reach // self.block), self.blocks - 1)

    @property
    def behind(self) -> int:
        """How many behind its own."""
        return 0 if self.rule.causal else self.before

    @property
    def steps(self) -> int:
        """How many blocks of the other kind a block meets at most."""
        return min(self.before + self.behind + 1, self.blocks)

    @property
    def meetings(self) -> int:
        """Pairs of blocks that meet, of a head."""
        last = self.blocks - 1
        return sum(
            min(own + self.behind, last) - max(own - self.before, 0) + 1
            for own in range(self.blocks)
        )

    def all_near(self, distance: Any) -> Any:
        """Whether every token of a block may read every one of another, so many blocks before, by place."""
        rule = self.rule
        near: Any = True
        if rule.causal:
            near = distance > 0
        if rule.reach is not None:
            near &= (jnp.abs(distance) + 1) * self.block - 1 <= rule.reach
        return near

    def met(self, own: Any, step: Any, by_query: bool) -> tuple[Any, Any]:
        """The block that a block meets at a step, and whether it does; if not, the last one again."""
        before, behind = (self.before, self.behind) if by_query else (self.behind, self.before)
        last = jnp.minimum(own + behind, self.blocks - 1)
        other = jnp.maximum(own - before, 0) + step
        return jnp.minimum(other, last), other <= last


def plan_of(rule: Rule, length: int) -> Plan:
    """How texts of a length are cut where attention has a rule."""
    most = BLOCK if rule.reach is None or rule.reach >= BLOCK else NARROW
    filled = -(-length // LANES) * LANES
    block = math.gcd(filled, most)
    return Plan(rule, length, block, filled // block)


class Meeting(NamedTuple):
    """A block of queries and one of keys, in kernels that hold queries or keys along the rows.

    Attributes:
      rule: what a token may read.
      readable: true where the query may read the key; None if it may everywhere.
      place: of the pair among all of the text's weights, for dropout; uint32.
      seed: of the text, two words.
    """

    rule: Rule
    readable: jax.Array | None
    place: jax.Array
    seed: tuple[Any, Any]

    def scores(self, rows: jax.Array, columns: jax.Array) -> jax.Array:
        """Scores before the mask; the queries were scaled."""
        return self.rule.capped(product(rows, columns, (1, 1)))

    def masked(self, scores: jax.Array) -> jax.Array:
        return scores if self.readable is None else jnp.where(self.readable, scores, LOWEST)

    def dropped(self, x: jax.Array) -> jax.Array:
        """After dropout, the same whatever `x` is."""
        rate = self.rule.dropout
        if rate == 0.0:
            return x
        return jnp.where(keep(self.place, *self.seed, rate), x * (1 / (1 - rate)), 0)


def meet(
    body: Callable[[Meeting], None],
    plan: Plan,
    by_query: bool,
    head: Any,
    own: Any,
    step: Any,
    seed: Any,
    segments: tuple[Any, Any, Any],
) -> None:
    """Runs what two blocks of a head do if they meet at a step; rows are queries if `by_query`, else keys."""
    ends, query_segments, key_segments = segments
    met, meets = plan.met(own, step, by_query)
    query_block, key_block = (own, met) if by_query else (met, own)
    # Of most pairs of blocks all may be read, which costs less to see than to ask of every score.
    lowest, highest = (
        of(ends[0, side, query_block], ends[0, side, key_block])
        for side, of in enumerate((jnp.minimum, jnp.maximum))
    )
    clear = (lowest == highest) & plan.all_near(query_block - key_block)

    def pair(masked: bool) -> None:
        shape = (plan.block, plan.block)
        query = query_block * plan.block + jax.lax.broadcasted_iota(jnp.int32, shape, 1 - by_query)
        key = key_block * plan.block + jax.lax.broadcasted_iota(jnp.int32, shape, int(by_query))
        readable = None
        if masked:
            rows, columns = query_segments, key_segments
            rows, columns = (rows, columns) if by_query else (columns, rows)
            readable = column(rows) == columns[0]
            if not plan.rule.anywhere:
                readable &= plan.rule.near(query - key)
        place = ((head * plan.length + query) * plan.length + key).astype(jnp.uint32)
        body(Meeting(plan.rule, readable, place, (seed[0, 0, 0], seed[0, 0, 1])))

    pl.when(meets & clear)(lambda: pair(masked=False))
    pl.when(meets & ~clear)(lambda: pair(masked=True))


def column(row: Any) -> jax.Array:
    """[block, 1], of a block with one row."""
    return jnp.expand_dims(row[(0,) * (len(row.shape) - 1)], -1)
