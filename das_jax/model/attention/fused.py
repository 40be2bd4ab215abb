"""Attention both ways in one TPU kernel per example and group of heads: scores and weights never leave the
chip.

The longest text of BERT and RoBERTa has 512 tokens, so the scores of 128 queries, [T, Q] float32, fit into
the memory on the chip and need no running softmax over blocks. The backward kernel computes the weights
again; their dropout is hashed in both from the same numbers as in `dense_attention`, hence the same.

Keys are rows of the scores and queries their columns: sums over keys add registers, and of what there is
one for every query 128 fit into a register. The queries of a block's heads stand one after the other, so
that a text of any length wastes less than 16 rows a head and 128 columns a block: they are padded on the
chip. At 164 tokens two heads take three times 128 columns, and would take four by themselves.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from das_jax.model.attention.kernel import LANES, product, run_kernel
from das_jax.model.attention.rule import Rule
from das_jax.model.dropout import keep

ROWS = 1024
"""Tokens of a block, if there are examples enough: every block costs some fixed time."""

SUBLANES = 16
"""Rows of numbers of 16 bits in a TPU's register."""


def fused_attention(
    query_BxTxHxK: jax.Array,
    key_BxTxHxK: jax.Array,
    value_BxTxHxK: jax.Array,
    mask_BxT: jax.Array,
    rule: Rule,
    seed_Bx2: jax.Array | None = None,
    segments_BxT: jax.Array | None = None,
) -> jax.Array:
    """`dense_attention` without an array of weights, of the rule of BERT: dropout and nothing else."""
    assert rule == Rule(dropout=rule.dropout)
    assert segments_BxT is None
    rate = rule.dropout
    if seed_Bx2 is None:
        rate = 0.0
        seed_Bx2 = jnp.repeat(mask_BxT[:, :1], 2, axis=1).astype(jnp.uint32)  # Nobody reads it.
    batch, length, heads, size = query_BxTxHxK.shape
    wide = (
        x.reshape(batch, length, heads * size) for x in (query_BxTxHxK, key_BxTxHxK, value_BxTxHxK)
    )
    mask_Bx1xT = mask_BxT[:, None].astype(jnp.int32)
    return _attend(rate, heads, *wide, mask_Bx1xT, seed_Bx2).reshape(query_BxTxHxK.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(rate: float, heads: int, query: Any, key: Any, value: Any, mask: Any, seed: Any) -> Any:
    (context_BxTxD,) = _run(
        _forward_kernel, rate, heads, seed, mask, (query, key, value), outputs=1
    )
    return context_BxTxD


def _fused_forward(rate: float, heads: int, *arguments: jax.Array) -> tuple:
    return _attend(rate, heads, *arguments), arguments


def _fused_backward(rate: float, heads: int, kept: tuple, cotangent_BxTxD: jax.Array) -> tuple:
    query, key, value, mask, seed = kept
    arrays = (query, key, value, cotangent_BxTxD)
    gradients = _run(_backward_kernel, rate, heads, seed, mask, arrays, outputs=3)
    return *gradients, *(np.zeros(x.shape, jax.dtypes.float0) for x in (mask, seed))


_attend.defvjp(_fused_forward, _fused_backward)


def _forward_kernel(
    rate: float, size: int, seed: Any, mask: Any, query: Any, key: Any, value: Any, context: Any
) -> None:
    length = query.shape[1]
    numbers = _numbers(length, query.shape[2] // size)

    def attend(row: Any) -> None:
        k_TxD, v_TxD = (_full(x[row]) for x in (key, value))
        q_RxD = _stacked(query[row] * size**-0.5, size)
        read = _readable(mask[row])
        columns = []
        for start, number_1xQ in numbers:
            powers_TxQ, sum_1xQ = _powers(k_TxD, q_RxD[start : start + LANES], *read)
            weights_TxQ = powers_TxQ * (1 / ((1 - rate) * sum_1xQ))
            kept_TxQ = _kept(weights_TxQ, rate, seed, row, number_1xQ).astype(v_TxD.dtype)
            columns.append(product(v_TxD, kept_TxQ, (0, 0)))
        context[row] = _unstacked(columns, size, length).astype(context.dtype)

    _for_texts(query, attend)


def _backward_kernel(
    rate: float,
    size: int,
    seed: Any,
    mask: Any,
    query: Any,
    key: Any,
    value: Any,
    cotangent: Any,
    to_query: Any,
    to_key: Any,
    to_value: Any,
) -> None:
    length = query.shape[1]
    numbers = _numbers(length, query.shape[2] // size)

    def attend(row: Any) -> None:
        k_TxD, v_TxD = (_full(x[row]) for x in (key, value))
        q_RxD, c_RxD = (_stacked(x, size) for x in (query[row] * size**-0.5, cotangent[row]))
        read = _readable(mask[row])
        to_k_TxD = to_v_TxD = jnp.zeros(k_TxD.shape, jnp.float32)
        columns = []
        for start, number_1xQ in numbers:
            q_QxD, c_QxD = (x[start : start + LANES] for x in (q_RxD, c_RxD))
            keep_some = functools.partial(
                _kept, rate=rate, seed=seed, row=row, number_1xQ=number_1xQ
            )
            powers_TxQ, sum_1xQ = _powers(k_TxD, q_QxD, *read)
            scale_1xQ = 1 / sum_1xQ
            weights_TxQ = powers_TxQ * (scale_1xQ * (1 / (1 - rate)))
            to_v_TxD += product(keep_some(weights_TxQ).astype(c_QxD.dtype), c_QxD, (1, 0))
            to_weights_TxQ = keep_some(product(v_TxD, c_QxD, (1, 1)))
            mean_1xQ = jnp.sum(powers_TxQ * to_weights_TxQ, axis=0, keepdims=True) * scale_1xQ
            to_scores_TxQ = (weights_TxQ * (to_weights_TxQ - mean_1xQ)).astype(q_QxD.dtype)
            to_k_TxD += product(to_scores_TxQ, q_QxD, (1, 0))
            columns.append(product(k_TxD, to_scores_TxQ, (0, 0)))
        to_q_TxD = _unstacked(columns, size, length) * size**-0.5
        to_query[row] = to_q_TxD.astype(to_query.dtype)
        to_key[row] = to_k_TxD[:length].astype(to_key.dtype)
        to_value[row] = to_v_TxD[:length].astype(to_value.dtype)

    _for_texts(query, attend)


def _for_texts(query: Any, attend: Callable[[Any], None]) -> None:
    """Runs what attends in a text for those of the block; the compiler interleaves two."""
    texts = query.shape[0]
    jax.lax.fori_loop(0, texts, lambda row, _: attend(row), None, unroll=min(2, texts))


def _rows(length: int) -> int:
    """The tokens of a text, padded."""
    return -(-length // SUBLANES) * SUBLANES


def _full(x_TxD: jax.Array) -> jax.Array:
    """With rows of zeros, if there are too few for a register."""
    more = _rows(len(x_TxD)) - len(x_TxD)
    zeros = jnp.zeros((more, x_TxD.shape[1]), x_TxD.dtype)
    return jnp.concatenate([x_TxD, zeros]) if more else x_TxD


def _stacked(x_TxD: jax.Array, size: int) -> jax.Array:
    """Every head's rows below those of the one before, among zeros in the columns of the others.

    A product with these is every head's own, though the other factor has all heads side by side.
    """
    rows, width = _rows(len(x_TxD)), x_TxD.shape[1]
    words = pltpu.bitcast(_full(x_TxD), jnp.uint32)  # These need no mask of 16 bits.
    parts = [
        pltpu.bitcast(jnp.where(_columns(head, size, width), words, 0), x_TxD.dtype)
        for head in range(width // size)
    ]
    more = -rows * len(parts) % LANES
    if more:
        parts.append(jnp.zeros((more, width), x_TxD.dtype))
    return jnp.concatenate(parts)


def _unstacked(columns_DxQ: list[jax.Array], size: int, length: int) -> jax.Array:
    """Of every head's rows its own columns, [T, D]; given transposed, in pieces."""
    stack_RxD = jnp.concatenate([x_DxQ.T for x_DxQ in columns_DxQ])
    rows, width = _rows(length), stack_RxD.shape[1]
    result_TxD = stack_RxD[:rows]
    for head in range(1, width // size):
        of_TxD = stack_RxD[head * rows : (head + 1) * rows]
        result_TxD = jnp.where(_columns(head, size, width), of_TxD, result_TxD)
    return result_TxD[:length]


def _columns(head: int, size: int, width: int) -> jax.Array:
    """True in a head's columns of a block, [1, D]."""
    column_1xD = jax.lax.broadcasted_iota(jnp.int32, (1, width), 1)
    return (column_1xD >= head * size) & (column_1xD < (head + 1) * size)


def _readable(mask_1xT: jax.Array) -> tuple[jax.Array, Any]:
    """Where keys may be read, [T, Q], and the scores of the others.

    Where nothing may be read the weights are all equal, but padding to full registers has none.
    """
    length = mask_1xT.shape[1]
    rows = _rows(length)
    lowest: Any = jnp.finfo(jnp.float32).min
    if rows > length:
        padding = jnp.full((1, rows - length), -1, mask_1xT.dtype)
        mask_1xT = jnp.concatenate([mask_1xT, padding], axis=1)
    mask_TxQ = jnp.broadcast_to(mask_1xT, (LANES, rows)).T
    if rows > length:
        lowest = jnp.where(mask_TxQ == -1, -jnp.inf, lowest)
    return mask_TxQ == 1, lowest


def _powers(
    key_TxD: jax.Array, query_QxD: jax.Array, readable_TxQ: jax.Array, lowest: Any
) -> tuple[jax.Array, jax.Array]:
    """What the weights are in proportion to, and its sum over keys."""
    scores_TxQ = jnp.where(readable_TxQ, product(key_TxD, query_QxD, (1, 1)), lowest)
    powers_TxQ = jnp.exp(scores_TxQ - jnp.max(scores_TxQ, axis=0, keepdims=True))
    return powers_TxQ, jnp.sum(powers_TxQ, axis=0, keepdims=True)


def _numbers(length: int, heads: int) -> list[tuple[int, jax.Array]]:
    """By the first of every 128 rows of a stack: the numbers in the model of their first weights, [1, Q]."""
    first, rows, numbers = pl.program_id(1) * heads, _rows(length), []
    for start in range(0, rows * heads, LANES):
        row_1xQ = jax.lax.broadcasted_iota(jnp.int32, (1, LANES), 1) + start
        head_1xQ = sum(
            ((row_1xQ >= rows * head).astype(jnp.int32) for head in range(1, heads)),
            start=jnp.zeros_like(row_1xQ),
        )
        reader_1xQ = row_1xQ - head_1xQ * rows
        numbers.append((start, ((first + head_1xQ) * length + reader_1xQ) * length))
    return numbers


def _kept(x_TxQ: jax.Array, rate: float, seed: Any, row: Any, number_1xQ: jax.Array) -> jax.Array:
    """Without what dropout drops; not scaled."""
    if rate == 0.0:
        return x_TxQ
    read_TxQ = jax.lax.broadcasted_iota(jnp.int32, x_TxQ.shape, 0)
    number_TxQ = (number_1xQ + read_TxQ).astype(jnp.uint32)
    return jnp.where(keep(number_TxQ, seed[0, row, 0], seed[0, row, 1], rate), x_TxQ, 0)


def _run(
    kernel: Any, rate: float, heads: int, seed: Any, mask: Any, arrays: Any, outputs: int
) -> tuple[jax.Array, ...]:
    """Runs a kernel over all groups of texts and heads; those of a block should fill the lanes."""
    batch, length, width = arrays[0].shape
    size = width // heads
    together = LANES // size if LANES % size == 0 and heads % (LANES // size) == 0 else heads
    most = max(1, ROWS // length)
    texts = max(texts for texts in range(1, most + 1) if batch % texts == 0)
    block = pl.BlockSpec((texts, length, together * size), lambda b, h: (b, 0, h))
    seeds = pl.BlockSpec((1, texts, 2), lambda b, h: (b, 0, 0), memory_space=pltpu.SMEM)
    masks = pl.BlockSpec((texts, 1, length), lambda b, h: (b, 0, 0))
    products, rows = 2 if outputs == 1 else 5, _rows(length)
    per_output = batch * length * width * arrays[0].dtype.itemsize
    return run_kernel(
        kernel,
        (rate, size),
        [(seed.reshape(-1, texts, 2), seeds), (mask, masks), *((x, block) for x in arrays)],
        [(jax.ShapeDtypeStruct(arrays[0].shape, arrays[0].dtype), block)] * outputs,
        like=arrays[0],
        grid=(batch // texts, heads // together),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
        cost=pl.CostEstimate(
            flops=products * 2 * batch * length * length * width,
            transcendentals=batch * heads // together * rows * -(-rows * together // LANES) * LANES,
            bytes_accessed=(len(arrays) + outputs) * per_output,
        ),
    )
