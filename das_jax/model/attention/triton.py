"""Attention of every rule in kernels for NVIDIA GPUs, with dropout: FlashAttention-2 (Dao, arXiv:2307.08691).

A program holds a block of a head's queries and meets the blocks of keys that these may read, one after the
other, with a running softmax. The backward pass computes the weights again from the logarithm of their sum:
in one kernel where a program holds all keys of a head, else once for the gradients of keys and values, once
for those of queries. Arrays are read as the model has them, [B, T, H, K], and any length is cut into blocks
by masks. Dropout is hashed from the same numbers as in `dense_attention`, hence the same.
"""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from das_jax.model.attention.kernel import product, run_kernel
from das_jax.model.attention.rule import Rule, segments_of
from das_jax.model.attention.triton_blocks import LOWEST, Block, Plan, meeting

SMALLEST = 16
"""Tokens of the smallest block that the chip multiplies."""

SIZES = (16, 32, 64, 128)
"""Features of a head for which there are blocks that fit into the registers."""


@dataclass(frozen=True)
class Tile:
    """How a kernel is cut.

    Attributes:
      own: tokens of the block that a program holds, a power of 2.
      met: of a block that it meets.
      warps: of a program, 32 threads each.
      stages: blocks under way from memory at once.
    """

    own: int
    met: int
    warps: int
    stages: int


def triton_attention(
    query_BxTxHxK: jax.Array,
    key_BxTxGxK: jax.Array,
    value_BxTxGxK: jax.Array,
    mask_BxT: jax.Array,
    rule: Rule,
    seed_Bx2: jax.Array | None = None,
    segments_BxT: jax.Array | None = None,
) -> jax.Array:
    """`dense_attention` without an array of weights, whose context vectors mean nothing at padding; on the
    CPU it is interpreted, slowly, for tests.
    """
    _, length, heads, size = query_BxTxHxK.shape
    if seed_Bx2 is None:
        rule = dataclasses.replace(rule, dropout=0.0)
        seed_Bx2 = jnp.repeat(mask_BxT[:, :1], 2, axis=1).astype(jnp.uint32)  # Nobody reads it.
    sharing = heads // key_BxTxGxK.shape[2]
    plan = Plan(rule.within(length), length, size, sharing, segments_BxT is not None)
    segments_BxT = segments_of(mask_BxT, segments_BxT)
    return _attend(plan, query_BxTxHxK, key_BxTxGxK, value_BxTxGxK, segments_BxT, seed_Bx2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(plan: Plan, query: Any, key: Any, value: Any, segments: Any, seed: Any) -> Any:
    return _triton_forward(plan, query, key, value, segments, seed)[0]


def _triton_forward(
    plan: Plan, query: Any, key: Any, value: Any, segments: Any, seed: Any
) -> tuple:
    context, log_sum = _run(_triton_context_kernel, plan, segments, seed, query, key, value)
    return context, (segments, seed, query, key, value, context, log_sum)


def _triton_backward(plan: Plan, kept: tuple, cotangent: jax.Array) -> tuple:
    segments, seed, query, key, value, context, log_sum = kept
    arrays = (query, key, value, cotangent, log_sum)
    if plan.length <= TILES[_triton_whole_kernel].own:
        to_query, to_key, to_value = _run(_triton_whole_kernel, plan, segments, seed, *arrays)
    else:
        # The softmax's own sum of weights times cotangents, which dropout does not change.
        sums = jnp.sum(cotangent.astype(jnp.float32) * context.astype(jnp.float32), axis=-1)
        sums = sums.swapaxes(1, 2)
        (to_query,) = _run(_triton_query_kernel, plan, segments, seed, *arrays, sums)
        to_key, to_value = _run(_triton_key_kernel, plan, segments, seed, *arrays, sums)
    no_gradients = (np.zeros(x.shape, jax.dtypes.float0) for x in (segments, seed))
    return to_query, to_key, to_value, *no_gradients


_attend.defvjp(_triton_forward, _triton_backward)


def _triton_context_kernel(
    plan: Plan,
    tile: Tile,
    seed: Any,
    segments: Any,
    query: Any,
    key: Any,
    value: Any,
    context: Any,
    log_sum: Any,
) -> None:
    head, own = pl.program_id(1), Block(pl.program_id(0) * tile.own, tile.own, plan.length)
    q = own.read(query)

    def meet(step: Any, carry: tuple) -> tuple:
        total, highest, powers_sum = carry
        met = Block(step * tile.met, tile.met, plan.length)
        pair = meeting(plan, True, head, own, met, segments, seed)
        logits = pair.masked(pair.logits(product(q, met.read(key), (1, 1))))
        above = jnp.maximum(highest, jnp.max(logits, axis=1))
        shrink = jnp.exp2(highest - above)
        powers = jnp.exp2(logits - above[:, None])
        dropped = pair.dropped(powers).astype(value.dtype)
        total = total * shrink[:, None] + product(dropped, met.read(value), (1, 0))
        return total, above, powers_sum * shrink + jnp.sum(powers, axis=1)

    nothing = jnp.zeros((tile.own,), jnp.float32)
    carry = jnp.zeros((tile.own, plan.size), jnp.float32), nothing + LOWEST, nothing
    first, last = plan.visits(own, tile.met, by_query=True)
    total, highest, powers_sum = jax.lax.fori_loop(first, last, meet, carry)
    own.write(context, total * (1 / powers_sum)[:, None])
    own.write(log_sum, highest + jnp.log2(powers_sum))


def _triton_query_kernel(
    plan: Plan,
    tile: Tile,
    seed: Any,
    segments: Any,
    query: Any,
    key: Any,
    value: Any,
    cotangent: Any,
    log_sum: Any,
    sums: Any,
    to_query: Any,
) -> None:
    head, own = pl.program_id(1), Block(pl.program_id(0) * tile.own, tile.own, plan.length)
    q, c = own.read(query), own.read(cotangent)
    high, low = own.read(log_sum)[:, None], own.read(sums)[:, None]

    def meet(step: Any, total: jax.Array) -> jax.Array:
        met = Block(step * tile.met, tile.met, plan.length)
        k = met.read(key)
        pair = meeting(plan, True, head, own, met, segments, seed)
        logits = pair.logits(product(q, k, (1, 1)))
        to_weights = pair.dropped(product(c, met.read(value), (1, 1)))
        weights = jnp.exp2(pair.masked(logits) - high)
        to_products = pair.to_products(weights * (to_weights - low), logits)
        return total + product(to_products.astype(k.dtype), k, (1, 0))

    total = jnp.zeros((tile.own, plan.size), jnp.float32)
    total = jax.lax.fori_loop(*plan.visits(own, tile.met, by_query=True), meet, total)
    own.write(to_query, total * plan.scale)


def _triton_key_kernel(
    plan: Plan,
    tile: Tile,
    seed: Any,
    segments: Any,
    query: Any,
    key: Any,
    value: Any,
    cotangent: Any,
    log_sum: Any,
    sums: Any | None,
    to_key: Any,
    to_value: Any,
    to_query: Any | None = None,
) -> None:
    """The rows are keys. One that holds all of a head's makes the queries' gradients and `sums` itself."""
    group, own = pl.program_id(1), Block(pl.program_id(0) * tile.own, tile.own, plan.length)
    k, v = own.read(key), own.read(value)
    first, last = plan.visits(own, tile.met, by_query=False)

    def meet(step: Any, totals: tuple) -> tuple:
        # The query heads that read this key, one after the other.
        head, step = jax.lax.div(step, last - first), jax.lax.rem(step, last - first)
        met = Block((first + step) * tile.met, tile.met, plan.length)
        q, c = met.read(query, head), met.read(cotangent, head)
        number = group * plan.sharing + head
        pair = meeting(plan, False, number, met, own, segments, seed)
        logits = pair.logits(product(k, q, (1, 1)))
        weights = jnp.exp2(pair.masked(logits) - met.read(log_sum, head)[None])
        to_weights = pair.dropped(product(v, c, (1, 1)))
        to_value = totals[1] + product(pair.dropped(weights).astype(c.dtype), c, (1, 0))
        low = jnp.sum(weights * to_weights, axis=0) if sums is None else met.read(sums, head)
        to_products = pair.to_products(weights * (to_weights - low[None]), logits).astype(q.dtype)
        if to_query is not None:
            met.write(to_query, product(to_products, k, (0, 0)) * plan.scale, head)
        return totals[0] + product(to_products, q, (1, 0)), to_value

    nothing = jnp.zeros((tile.own, plan.size), jnp.float32)
    steps = plan.sharing * (last - first)
    total_key, total_value = jax.lax.fori_loop(0, steps, meet, (nothing, nothing))
    own.write(to_key, total_key * plan.scale)
    own.write(to_value, total_value)


def _triton_whole_kernel(
    plan: Plan,
    tile: Tile,
    seed: Any,
    segments: Any,
    query: Any,
    key: Any,
    value: Any,
    cotangent: Any,
    log_sum: Any,
    to_query: Any,
    to_key: Any,
    to_value: Any,
) -> None:
    inputs = (seed, segments, query, key, value, cotangent, log_sum)
    _triton_key_kernel(plan, tile, *inputs, None, to_key, to_value, to_query)


PRODUCTS = {
    _triton_context_kernel: 2,
    _triton_query_kernel: 3,
    _triton_key_kernel: 4,
    _triton_whole_kernel: 5,
}
"""Matrix products of two blocks that meet."""

TILES: dict[Callable[..., None], Tile] = {
    _triton_context_kernel: Tile(128, 64, warps=8, stages=2),
    _triton_query_kernel: Tile(64, 64, warps=4, stages=2),
    _triton_key_kernel: Tile(64, 32, warps=4, stages=2),
    _triton_whole_kernel: Tile(128, 16, warps=8, stages=1),
}
"""How a kernel is cut for a long text: its numbers stay in the registers of an H100, and two programs or more
run on a multiprocessor, if heads have 64 features. `whole` is for texts of which it holds all keys."""


def _tile(kernel: Callable[..., None], length: int) -> Tile:
    tile, whole = TILES[kernel], max(SMALLEST, pl.next_power_of_2(length))
    own, met = min(tile.own, whole), min(tile.met, whole)
    # Two steps are too few to read ahead, and registers too few to have the numbers of both.
    stages = tile.stages if length > 2 * met else 1
    return Tile(own, met, tile.warps, stages)


def _run(
    kernel: Callable[..., None], plan: Plan, segments: Any, seed: Any, *arrays: jax.Array
) -> tuple[jax.Array, ...]:
    """Runs a kernel over texts, heads and the blocks that a program holds."""
    query, key = arrays[:2]
    batch, length, heads, size = query.shape
    groups = key.shape[2]
    by_query = kernel in (_triton_context_kernel, _triton_query_kernel)
    tile = _tile(kernel, length)

    def tokens(count: int, at: Callable[[Any], Any]) -> pl.BlockSpec:
        return pl.BlockSpec((None, length, count, size), lambda i, h, b: (b, 0, at(h), 0))

    # Index maps name the head, or the first of a block of heads.
    if by_query:
        of_query = tokens(1, lambda head: head)
        of_key = tokens(1, lambda head: jax.lax.div(head, plan.sharing))
        of_numbers = pl.BlockSpec((None, 1, length), lambda i, h, b: (b, h, 0))
    else:
        of_query = tokens(plan.sharing, lambda group: group)
        of_key = tokens(1, lambda group: group)
        of_numbers = pl.BlockSpec((None, plan.sharing, length), lambda i, h, b: (b, h, 0))
    specs = (of_query, of_key, of_key, of_query, of_numbers, of_numbers)
    inputs = [
        (seed, pl.BlockSpec((None, 2), lambda i, h, b: (b, 0))),
        (segments, pl.BlockSpec((None, length), lambda i, h, b: (b, 0))),
        *zip(arrays, specs[: len(arrays)], strict=True),
    ]
    numbers = jax.ShapeDtypeStruct((batch, heads, length), jnp.float32)
    by_kernel: dict[Any, list[tuple[Any, pl.BlockSpec]]] = {
        _triton_context_kernel: [(query, of_query), (numbers, of_numbers)],
        _triton_query_kernel: [(query, of_query)],
        _triton_key_kernel: [(key, of_key), (key, of_key)],
        _triton_whole_kernel: [(query, of_query), (key, of_key), (key, of_key)],
    }
    outputs = by_kernel[kernel]
    pairs = batch * heads * length**2
    return run_kernel(
        kernel,
        (plan, tile),
        inputs,
        outputs,
        like=query,
        grid=(-(-length // tile.own), heads if by_query else groups, batch),
        compiler_params=plgpu.CompilerParams(num_warps=tile.warps, num_stages=tile.stages),
        cost=pl.CostEstimate(
            flops=PRODUCTS[kernel] * 2 * pairs * size,
            transcendentals=pairs,
            bytes_accessed=sum(x.size * x.dtype.itemsize for x, _ in (*inputs, *outputs)),
        ),
    )
