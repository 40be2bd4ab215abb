"""Attention of every rule in TPU kernels over blocks of tokens: FlashAttention (Dao, arXiv:2307.08691).

A block of a head's queries meets the blocks of keys that it may read, one after the other, and keeps a
running softmax; blocks that it may not read are not visited. The backward pass computes the weights again
from the logarithm of their sum: once for the gradients of the queries, once for those of keys and values.
Dropout is hashed from the same numbers as in `dense_attention`, hence the same.

JAX's own kernel of this kind, `splash_attention`, has no dropout, and does not say over which axes of a mesh
its results differ, without which `shard_map` cannot know what a gradient must be summed over.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from das_jax.model.attention.flash_blocks import LOWEST, Meeting, Plan, column, meet, plan_of
from das_jax.model.attention.kernel import product, run_kernel
from das_jax.model.attention.rule import PADDING, Rule, segments_of

FLASH = "flash"
"""The name of what the backward pass reads, for policies that say what is kept."""


def flash_attention(
    query_BxTxHxK: jax.Array,
    key_BxTxGxK: jax.Array,
    value_BxTxGxK: jax.Array,
    mask_BxT: jax.Array,
    rule: Rule,
    seed_Bx2: jax.Array | None = None,
    segments_BxT: jax.Array | None = None,
) -> jax.Array:
    """`dense_attention` without an array of weights; on the CPU it is interpreted, slowly, for tests."""
    length = query_BxTxHxK.shape[1]
    if seed_Bx2 is None:
        rule = dataclasses.replace(rule, dropout=0.0)
        seed_Bx2 = jnp.repeat(mask_BxT[:, :1], 2, axis=1).astype(jnp.uint32)  # Nobody reads it.
    plan = plan_of(rule.within(length), length)
    filled = plan.block * plan.blocks - length

    def heads_first(x_BxTxHxK: jax.Array) -> jax.Array:
        return jnp.pad(x_BxTxHxK.swapaxes(1, 2), ((0, 0), (0, 0), (0, filled), (0, 0)))

    # Another segment than that of padding, which would read what it is filled up with.
    segments_BxT = segments_of(mask_BxT, segments_BxT)
    segments_BxT = jnp.pad(segments_BxT, ((0, 0), (0, filled)), constant_values=PADDING - 1)
    arrays = (heads_first(x) for x in (query_BxTxHxK, key_BxTxGxK, value_BxTxGxK))
    context_BxHxTxK = _attend(plan, *arrays, segments_BxT, seed_Bx2)
    return context_BxHxTxK[:, :, :length].swapaxes(1, 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(plan: Plan, query: Any, key: Any, value: Any, segments: Any, seed: Any) -> Any:
    return _flash_forward(plan, query, key, value, segments, seed)[0]


def _flash_forward(plan: Plan, query: Any, key: Any, value: Any, segments: Any, seed: Any) -> tuple:
    query, key, value = map(_named, (query, key, value))
    context, log_sum = _run(_flash_context_kernel, plan, segments, seed, query, key, value)
    context, log_sum = _named(context), checkpoint_name(log_sum, FLASH)
    return context, (segments, seed, query, key, value, context, log_sum)


def _named(x_BxHxTxK: jax.Array) -> jax.Array:
    """The same array. By its name it is kept with all heads of a token side by side: alone, a head of 64
    would take as much room as one of 128.
    """
    batch, heads, length, size = x_BxHxTxK.shape
    x_BxTxHK = x_BxHxTxK.swapaxes(1, 2).reshape(batch, length, heads * size)
    return checkpoint_name(x_BxTxHK, FLASH).reshape(batch, length, heads, size).swapaxes(1, 2)


def _flash_backward(plan: Plan, kept: tuple, cotangent: jax.Array) -> tuple:
    segments, seed, query, key, value, context, log_sum = kept
    # The softmax's own sum of weights times cotangents, which dropout does not change.
    sums = jnp.sum(cotangent.astype(jnp.float32) * context.astype(jnp.float32), axis=-1)
    arrays = (query, key, value, cotangent, log_sum, sums[:, :, None])
    (to_query,) = _run(_flash_query_kernel, plan, segments, seed, *arrays)
    to_key, to_value = _run(_flash_key_kernel, plan, segments, seed, *arrays)
    no_gradients = (np.zeros(x.shape, jax.dtypes.float0) for x in (segments, seed))
    return to_query, to_key, to_value, *no_gradients


_attend.defvjp(_flash_forward, _flash_backward)


def _scaled(plan: Plan, query: jax.Array) -> jax.Array:
    return query * plan.rule.scale_of(query.shape[-1])


def _flash_context_kernel(
    plan: Plan,
    seed: Any,
    ends: Any,
    query_segments: Any,
    key_segments: Any,
    query: Any,
    key: Any,
    value: Any,
    context: Any,
    log_sum: Any,
    total: Any,
    highest: Any,
    powers_sum: Any,
) -> None:
    head, own, step = (pl.program_id(axis) for axis in (1, 2, 3))

    @pl.when(step == 0)
    def _() -> None:
        total[...] = jnp.zeros_like(total)
        highest[...] = jnp.full_like(highest, LOWEST)
        powers_sum[...] = jnp.zeros_like(powers_sum)

    def body(pair: Meeting) -> None:
        scores = pair.masked(pair.scores(_scaled(plan, query[0, 0]), key[0, 0]))
        above = jnp.maximum(highest[...], jnp.max(scores, axis=1, keepdims=True))
        shrink = jnp.exp(highest[...] - above)
        powers = jnp.exp(scores - above)
        highest[...] = above
        powers_sum[...] = powers_sum[...] * shrink + jnp.sum(powers, axis=1, keepdims=True)
        dropped = pair.dropped(powers).astype(value.dtype)
        total[...] = total[...] * shrink + product(dropped, value[0, 0], (1, 0))

    segments = (ends, query_segments, key_segments)
    meet(body, plan, True, head, own, step, seed, segments)

    @pl.when(step == plan.steps - 1)
    def _() -> None:
        context[0, 0] = (total[...] * (1 / powers_sum[...])).astype(context.dtype)
        log_sum[0, 0] = (highest[...] + jnp.log(powers_sum[...])).reshape(1, plan.block)


def _flash_query_kernel(
    plan: Plan,
    seed: Any,
    ends: Any,
    query_segments: Any,
    key_segments: Any,
    query: Any,
    key: Any,
    value: Any,
    cotangent: Any,
    log_sum: Any,
    sums: Any,
    to_query: Any,
    total: Any,
) -> None:
    head, own, step = (pl.program_id(axis) for axis in (1, 2, 3))

    @pl.when(step == 0)
    def _() -> None:
        total[...] = jnp.zeros_like(total)

    def body(pair: Meeting) -> None:
        scores = pair.scores(_scaled(plan, query[0, 0]), key[0, 0])
        weights = jnp.exp(pair.masked(scores) - column(log_sum))
        to_weights = pair.dropped(product(cotangent[0, 0], value[0, 0], (1, 1)))
        to_scores = plan.rule.through_cap(weights * (to_weights - column(sums)), scores)
        total[...] += product(to_scores.astype(key.dtype), key[0, 0], (1, 0))

    segments = (ends, query_segments, key_segments)
    meet(body, plan, True, head, own, step, seed, segments)

    @pl.when(step == plan.steps - 1)
    def _() -> None:
        to_query[0, 0] = _scaled(plan, total[...]).astype(to_query.dtype)


def _flash_key_kernel(
    plan: Plan,
    seed: Any,
    ends: Any,
    query_segments: Any,
    key_segments: Any,
    query: Any,
    key: Any,
    value: Any,
    cotangent: Any,
    log_sum: Any,
    sums: Any,
    to_key: Any,
    to_value: Any,
    total_key: Any,
    total_value: Any,
) -> None:
    group, own, step = (pl.program_id(axis) for axis in (1, 2, 3))
    steps = pl.num_programs(3)
    # The query heads that read this key, one after the other.
    head = group * (steps // plan.steps) + step // plan.steps

    @pl.when(step == 0)
    def _() -> None:
        total_key[...] = jnp.zeros_like(total_key)
        total_value[...] = jnp.zeros_like(total_value)

    def body(pair: Meeting) -> None:
        scores = pair.scores(key[0, 0], _scaled(plan, query[0, 0]))
        weights = jnp.exp(pair.masked(scores) - log_sum[0, 0])
        to_weights = pair.dropped(product(value[0, 0], cotangent[0, 0], (1, 1)))
        to_scores = plan.rule.through_cap(weights * (to_weights - sums[0, 0]), scores)
        total_key[...] += product(to_scores.astype(query.dtype), query[0, 0], (1, 0))
        dropped = pair.dropped(weights).astype(cotangent.dtype)
        total_value[...] += product(dropped, cotangent[0, 0], (1, 0))

    segments = (ends, query_segments, key_segments)
    meet(body, plan, False, head, own, step % plan.steps, seed, segments)

    @pl.when(step == steps - 1)
    def _() -> None:
        to_key[0, 0] = _scaled(plan, total_key[...]).astype(to_key.dtype)
        to_value[0, 0] = total_value[...].astype(to_value.dtype)


PRODUCTS = {_flash_context_kernel: 2, _flash_query_kernel: 3, _flash_key_kernel: 4}
"""Matrix products of two blocks that meet."""


def _run(
    kernel: Any, plan: Plan, segments: Any, seed: Any, query: Any, key: Any, *others: Any
) -> tuple[jax.Array, ...]:
    """Runs a kernel over texts, heads, blocks, and the blocks that each of them meets."""
    batch, heads, length, size = query.shape
    groups = key.shape[1]
    sharing, block = heads // groups, plan.block
    by_query = kernel is not _flash_key_kernel
    numbers = jax.ShapeDtypeStruct((batch, heads, 1, length), jnp.float32)

    def queries_at(head: Any, own: Any, step: Any) -> tuple[Any, Any]:
        """Head and block of the queries at a place of the grid."""
        if by_query:
            return head, own
        head = head * sharing + step // plan.steps
        return head, plan.met(own, step % plan.steps, by_query=False)[0]

    def keys_at(head: Any, own: Any, step: Any) -> tuple[Any, Any]:
        """Head and block of the keys."""
        if not by_query:
            return head, own
        return head // sharing, plan.met(own, step, by_query=True)[0]

    def tokens(at: Any) -> pl.BlockSpec:
        return pl.BlockSpec((1, 1, block, size), lambda b, *place: (b, *at(*place), 0))

    def segments_of_tokens(at: Any) -> pl.BlockSpec:
        return pl.BlockSpec((1, 1, block), lambda b, *place: (b, 0, at(*place)[1]))

    def numbers_at(b: Any, *place: Any) -> tuple[Any, ...]:
        head, own = queries_at(*place)
        return b, head, 0, own

    blocks_BxNxC = segments.reshape(batch, plan.blocks, block)
    ends_Bx2xN = jnp.stack([blocks_BxNxC.min(axis=2), blocks_BxNxC.max(axis=2)], axis=1)
    of_query, of_key = tokens(queries_at), tokens(keys_at)
    of_numbers = pl.BlockSpec((1, 1, 1, block), numbers_at)
    specs = (of_query, of_key, of_key, of_query, of_numbers, of_numbers)
    arrays = (query, key, *others)
    inputs = [
        (seed[:, None], pl.BlockSpec((1, 1, 2), lambda b, *_: (b, 0, 0), memory_space=pltpu.SMEM)),
        (
            ends_Bx2xN,
            pl.BlockSpec((1, 2, plan.blocks), lambda b, *_: (b, 0, 0), memory_space=pltpu.SMEM),
        ),
        (segments[:, None], segments_of_tokens(queries_at)),
        (segments[:, None], segments_of_tokens(keys_at)),
        *zip(arrays, specs[: len(arrays)], strict=True),
    ]
    outputs, scratch = {
        _flash_context_kernel: ([(query, of_query), (numbers, of_numbers)], (size, 1, 1)),
        _flash_query_kernel: ([(query, of_query)], (size,)),
        _flash_key_kernel: ([(key, of_key), (key, of_key)], (size, size)),
    }[kernel]
    pairs = batch * heads * plan.meetings * block**2
    return run_kernel(
        kernel,
        (plan,),
        inputs,
        outputs,
        like=query,
        grid=(
            batch,
            *((heads, plan.blocks, plan.steps) if by_query else ()),
            *(() if by_query else (groups, plan.blocks, sharing * plan.steps)),
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")
        ),
        cost=pl.CostEstimate(
            flops=PRODUCTS[kernel] * 2 * pairs * size,
            transcendentals=pairs,
            bytes_accessed=sum(x.size * x.dtype.itemsize for x, _ in (*inputs, *outputs)),
        ),
        scratch=[pltpu.VMEM((block, width), jnp.float32) for width in scratch],
        name=kernel.__name__.strip("_") + ("_dropping" if plan.rule.dropout else ""),
    )
