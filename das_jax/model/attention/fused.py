"""Attention both ways in one TPU kernel per example and group of heads: scores and weights never leave the
chip.

The longest text of BERT and RoBERTa has 512 tokens, so all scores of a head, [T, T] float32, fit into
the memory on the chip and need no running softmax over blocks. The backward kernel computes the weights
again; their dropout is hashed in both from the same numbers as in `dense_attention`, hence the same.
"""

import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from das_jax.model.attention.kernel import LANES, product, run_kernel
from das_jax.model.attention.rule import Rule
from das_jax.model.dropout import keep

ROWS = 512
"""Tokens of a block, if there are examples enough: every block costs some fixed time."""


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
    for row, columns, head in _texts_and_heads(query, size):
        q, k, v = (x[row, :, columns] for x in (query, key, value))
        weights_TxT = _weights(q, k, mask[row])
        dropped_TxT = _dropped(weights_TxT, rate, seed, row, head)
        context[row, :, columns] = product(dropped_TxT, v, (1, 0)).astype(context.dtype)


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
    for row, columns, head in _texts_and_heads(query, size):
        q, k, v, c = (x[row, :, columns] for x in (query, key, value, cotangent))
        weights_TxT = _weights(q, k, mask[row])
        dropped_TxT = _dropped(weights_TxT, rate, seed, row, head)
        to_value[row, :, columns] = product(dropped_TxT, c, (0, 0)).astype(to_value.dtype)
        to_weights_TxT = _dropped(product(c, v, (1, 1)), rate, seed, row, head)
        weights_TxT = weights_TxT.astype(jnp.float32)
        sum_Tx1 = jnp.sum(weights_TxT * to_weights_TxT, axis=1, keepdims=True)
        to_scores_TxT = weights_TxT * (to_weights_TxT - sum_Tx1) * size**-0.5
        to_scores_TxT = to_scores_TxT.astype(q.dtype)
        to_query[row, :, columns] = product(to_scores_TxT, k, (1, 0)).astype(to_query.dtype)
        to_key[row, :, columns] = product(to_scores_TxT, q, (0, 0)).astype(to_key.dtype)


def _texts_and_heads(query: Any, size: int) -> Iterator[tuple[int, slice, Any]]:
    """Row and columns in this block of every text's every head, and the head's number in the model."""
    texts, _, width = query.shape
    heads = width // size
    first = pl.program_id(1) * heads
    for row in range(texts):
        for head in range(heads):
            yield row, slice(head * size, (head + 1) * size), first + head


def _weights(query_TxK: jax.Array, key_TxK: jax.Array, mask_1xT: jax.Array) -> jax.Array:
    scores_TxT = product(query_TxK * query_TxK.shape[1] ** -0.5, key_TxK, (1, 1))
    scores_TxT = jnp.where(mask_1xT != 0, scores_TxT, jnp.finfo(jnp.float32).min)
    powers_TxT = jnp.exp(scores_TxT - jnp.max(scores_TxT, axis=1, keepdims=True))
    weights_TxT = powers_TxT * (1 / jnp.sum(powers_TxT, axis=1, keepdims=True))
    return weights_TxT.astype(query_TxK.dtype)


def _dropped(x_TxT: jax.Array, rate: float, seed: Any, row: int, head: Any) -> jax.Array:
    if rate == 0.0:
        return x_TxT
    length = x_TxT.shape[0]
    reader, read = (jax.lax.broadcasted_iota(jnp.uint32, x_TxT.shape, axis) for axis in (0, 1))
    number = (head.astype(jnp.uint32) * length + reader) * length + read
    kept_TxT = keep(number, seed[0, row, 0], seed[0, row, 1], rate)
    return jnp.where(kept_TxT, x_TxT * jnp.asarray(1 / (1 - rate), x_TxT.dtype), 0)


def _run(
    kernel: Any, rate: float, heads: int, seed: Any, mask: Any, arrays: Any, outputs: int
) -> tuple[jax.Array, ...]:
    """Runs a kernel over all groups of texts and heads; those of a block should fill the lanes."""
    batch, length, width = arrays[0].shape
    size = width // heads
    together = LANES // size if LANES % size == 0 and heads % (LANES // size) == 0 else heads
    texts = math.gcd(batch, max(1, ROWS // length))
    block = pl.BlockSpec((texts, length, together * size), lambda b, h: (b, 0, h))
    seeds = pl.BlockSpec((1, texts, 2), lambda b, h: (b, 0, 0), memory_space=pltpu.SMEM)
    masks = pl.BlockSpec((texts, 1, length), lambda b, h: (b, 0, 0))
    products = 2 if outputs == 1 else 5
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
            transcendentals=batch * heads * length * length,
            bytes_accessed=(len(arrays) + outputs) * per_output,
        ),
    )
