"""Logits in blocks against the same logits at once, and what the compiler makes of both."""

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from das_jax.model.blocked_logits import (
    BlockedLogits,
    Unembedding,
    best_words,
    per_token,
    weighted_sum,
)
from das_jax.objectives.divergence import softmax_kl, vocabulary_kl
from das_jax.planning.hlo import parse
from das_jax.training.sharding import make_sharding

N, D, V = 19, 6, 31
"""The words are no multiple of anything, and neither are the tokens of a block."""

Losses = Callable[..., Any]


def normal(number: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(number), shape, jnp.zeros(()).dtype)


def assert_close(actual: jax.Array, expected: jax.Array, tolerance: float = 1e-5) -> None:
    assert jnp.abs(actual - expected).max() <= tolerance * jnp.abs(expected).max()


def losses(logits_CxV: jax.Array, labels_C: jax.Array) -> jax.Array:
    """Of labels below 0 there is none."""
    picked_C = jnp.take_along_axis(logits_CxV, jnp.maximum(labels_C, 0)[:, None], axis=-1)[:, 0]
    return jnp.where(labels_C >= 0, jax.nn.logsumexp(logits_CxV, axis=-1) - picked_C, 0)


def with_none(*block: jax.Array) -> tuple[jax.Array, None]:
    """And no others."""
    return losses(*block), None


def at_once(table: jax.Array, bias: jax.Array, cap: float | None, hidden: jax.Array) -> jax.Array:
    logits = hidden @ table.T + bias[None]
    return logits if cap is None else cap * jnp.tanh(logits / cap)


def one_by_one(unembedding: Unembedding, hidden: jax.Array, *others: jax.Array) -> jax.Array:
    """A sum whose weights nobody knows beforehand."""
    weights, labels = others
    return jnp.sum(
        jnp.sin(weights * per_token(losses, [BlockedLogits(unembedding, hidden)], labels))
    )


def in_one(unembedding: Unembedding, hidden: jax.Array, *others: jax.Array) -> jax.Array:
    def both(*block: jax.Array) -> tuple[jax.Array, jax.Array]:
        return losses(*block), losses(*block)

    total, values = weighted_sum(both, [BlockedLogits(unembedding, hidden)], *others)
    return jnp.sin(total) + jnp.sum(values)


def sine_of_each(values: jax.Array, weights: jax.Array) -> jax.Array:
    return jnp.sum(jnp.sin(weights * values))


def sine_of_sum(values: jax.Array, weights: jax.Array) -> jax.Array:
    return jnp.sin(jnp.sum(weights * values)) + jnp.sum(jax.lax.stop_gradient(values))


PAIRS = [(one_by_one, sine_of_each), (in_one, sine_of_sum)]


@pytest.mark.parametrize(("block", "cap"), [(7, 2.0), (N, None)])
def test_values_and_gradients_are_those_of_all_logits_at_once(
    block: int, cap: float | None, precision: str
) -> None:
    """Of one block no token counts, the last is not full; the cotangents of the tokens differ."""
    with jax.enable_x64(True) if precision == "float64" else contextlib.nullcontext():
        dtype = jnp.dtype(precision)
        table, bias, hidden = normal(0, V, D), normal(1, V), normal(2, N, D)
        labels = jax.random.randint(jax.random.key(3), (N,), 0, V).at[:8].set(-100)
        weights = jnp.abs(normal(4, N)) * (labels >= 0)

        @jax.jit
        def ours(*arguments: jax.Array) -> Any:
            def of(function: Losses) -> Any:
                def value(table: Any, bias: Any, hidden: Any, weights: Any) -> jax.Array:
                    unembedding = Unembedding(table, bias, dtype, cap, block)
                    return function(unembedding, hidden, weights, labels)

                return jax.value_and_grad(value, (0, 1, 2, 3))(*arguments)

            return [of(function) for function, _ in PAIRS]

        @jax.jit
        def theirs(*arguments: jax.Array) -> Any:
            def of(function: Losses) -> Any:
                def value(table: Any, bias: Any, hidden: Any, weights: Any) -> jax.Array:
                    return function(losses(at_once(table, bias, cap, hidden), labels), weights)

                return jax.value_and_grad(value, (0, 1, 2, 3))(*arguments)

            return [of(function) for _, function in PAIRS]

        arguments = table, bias, hidden, weights
        found, expected = map(jax.tree.leaves, (ours(*arguments), theirs(*arguments)))
        for a, e in zip(found, expected, strict=True):
            assert a.dtype == dtype
            assert_close(a, e, 1e-6 if precision == "float32" else 1e-12)


def test_two_models_and_gradients_of_examples() -> None:
    """KL of two hidden states by tables of their own; the derivatives by gates that each example has."""
    hidden = normal(0, 2, 4, 5, D)
    tables = normal(1, 2, V, D)
    gates = 1 + 0.3 * normal(2, 4, D)

    def kl(gates: jax.Array, tables: jax.Array, blocks: bool) -> jax.Array:
        gated = hidden * gates[None, :, None]
        if blocks:
            pair = [
                BlockedLogits(Unembedding(t, block=3), h)
                for t, h in zip(tables, gated, strict=True)
            ]
            return vocabulary_kl(*pair)
        return softmax_kl(*(h @ t.T for t, h in zip(tables, gated, strict=True)))

    @partial(jax.jit, static_argnums=0)
    def gradients(blocks: bool) -> Any:
        def of_all(*arguments: jax.Array) -> jax.Array:
            return jnp.sum(jnp.square(kl(*arguments, blocks)))

        of_gates = jax.grad(lambda gates: jnp.sum(kl(gates, tables, blocks)))
        return of_gates(gates), jax.grad(of_all, (0, 1))(gates, tables)

    jax.tree.map(assert_close, gradients(True), gradients(False))


def test_under_vmap() -> None:
    """Gradients of every example's own, for its hidden states and for one table."""
    hidden, table = normal(0, 3, N, D), normal(1, V, D)
    labels = jax.random.randint(jax.random.key(2), (3, N), 0, V)

    def each(blocks: bool) -> Any:
        def loss(hidden: jax.Array, table: jax.Array, labels: jax.Array) -> jax.Array:
            if not blocks:
                return jnp.sum(jnp.square(losses(hidden @ table.T, labels)))
            logits = [BlockedLogits(Unembedding(table, block=7), hidden)]
            total, _ = weighted_sum(with_none, logits, jnp.ones(N), labels)
            return jnp.sum(jnp.square(per_token(losses, logits, labels))) + 0 * total

        return jax.vmap(jax.grad(loss, (0, 1)), (0, None, 0))(hidden, table, labels)

    jax.tree.map(assert_close, *(jax.jit(each, static_argnums=0)(at) for at in (True, False)))


def test_a_bfloat16_table_has_its_gradient_added_up_in_float32() -> None:
    """1024 blocks of a token each, of whose halves bfloat16 would stop counting at 128."""
    hidden = jnp.ones((1024, 1), jnp.bfloat16)
    table, labels = jnp.zeros((2, 1)), jnp.zeros(1024, jnp.int32)

    def loss(function: Losses) -> Any:
        unembedding = partial(Unembedding, dtype=jnp.bfloat16, block=1)
        return jax.jit(jax.grad(lambda t: function(BlockedLogits(unembedding(t), hidden))))(table)

    each = loss(lambda logits: jnp.sum(per_token(losses, [logits], labels)))
    ones = jnp.ones(1024)
    total = loss(lambda x: weighted_sum(with_none, [x], ones, labels)[0])
    for gradient in (each, total):
        np.testing.assert_array_equal(gradient[:, 0], [-512, 512])


def test_the_best_word() -> None:
    table = jnp.eye(4).at[3, 1].set(1)
    hidden = jnp.array(
        [[0, 2, 0, 0.5], [0, 0, 0, 1], [jnp.nan, 0, 0, 0], [3, 1, 0, 0], [0, 0, 1, 0.0]]
    )
    found = [best_words(BlockedLogits(Unembedding(table, block=size), hidden)) for size in (2, 5)]
    assert [x.tolist() for x in found] == [[3, 3, -1, 0, 2]] * 2
    equal = BlockedLogits(Unembedding(table, bias_V=jnp.array([0, 1, 0, 0.5])), hidden[:1])
    assert best_words(equal).tolist() == [1]


def test_a_table_that_all_devices_share_is_asked_for_once() -> None:
    """Its gradient is that of the global batch, summed over the devices behind the loop."""
    sharding = make_sharding(8)
    rows = PartitionSpec(sharding.batch)
    hidden, table = normal(0, 8, 5, D), normal(1, V, D)
    labels = jax.random.randint(jax.random.key(2), (8, 5), 0, V)

    def loss(block: int, table: jax.Array, hidden: jax.Array, labels: jax.Array) -> jax.Array:
        logits = [BlockedLogits(Unembedding(table, block=block), hidden)]
        return weighted_sum(with_none, logits, jnp.ones(labels.shape), labels)[0]

    mapped = jax.shard_map(
        jax.grad(partial(loss, 2), (0, 1)),
        mesh=sharding.mesh,
        in_specs=(PartitionSpec(), rows, rows),
        out_specs=(PartitionSpec(), rows),
    )
    compiled = jax.jit(mapped).lower(table, hidden, labels).compile()
    expected = jax.grad(partial(loss, 100), (0, 1))(table, hidden, labels)
    for a, e in zip(compiled(table, hidden, labels), expected, strict=True):
        assert_close(a, e)
    module = parse(compiled.as_text().splitlines())
    sums = {
        name: [i for i in computation.values() if i.op.startswith("all-reduce")]
        for name, computation in module.computations.items()
    }
    assert [name for name, found in sums.items() if found] == [module.entry]


TOKENS, WIDTH, WORDS, SIZE = 512, 128, 301, 64


def compiled(which: str, block: int) -> Any:
    """A program that wants gradients of all, of hidden states only, or none."""

    def value(hidden: jax.Array, table: jax.Array, summed: bool) -> jax.Array:
        logits = [BlockedLogits(Unembedding(table, block=block), hidden)]
        if summed:
            return weighted_sum(lambda x: (logsumexp(x), None), logits, jnp.ones(TOKENS))[0]
        return jnp.sum(per_token(logsumexp, logits))

    logsumexp = partial(jax.nn.logsumexp, axis=-1)
    function, _, wanted = which.partition(" of ")
    of = partial(value, summed=function == "sum")
    if wanted:
        of = jax.value_and_grad(of, (0, 1) if wanted == "all" else 0)
    shapes = (jax.ShapeDtypeStruct((rows, WIDTH), jnp.float32) for rows in (TOKENS, WORDS))
    return jax.jit(of).lower(*shapes).compile()


@pytest.mark.parametrize(
    ("which", "products"),
    [
        ("each", 1),
        ("each of hidden", 2),
        ("each of all", 4),
        ("sum of hidden", 2),
        ("sum of all", 3),
    ],
)
def test_products_and_memory(which: str, products: int, optimised: None) -> None:
    """At most one product more than at once; XLA counts the body of the loop once."""
    program = compiled(which, SIZE)
    product = 2 * SIZE * WIDTH * WORDS
    assert program.cost_analysis()["flops"] == pytest.approx(products * product, rel=0.1)
    module = parse(program.as_text().splitlines())
    assert any(i.op == "while" for i in module.instructions())
    largest = max(array.elements for i in module.instructions() for array in i.arrays)
    assert largest == TOKENS * WIDTH


@pytest.mark.parametrize("which", ["each of all", "sum of all"])
def test_a_single_block_is_the_plain_computation(which: str, optimised: None) -> None:
    program = compiled(which, TOKENS)
    product = 2 * TOKENS * WIDTH * WORDS
    assert program.cost_analysis()["flops"] == pytest.approx(3 * product, rel=0.1)
    assert " while(" not in program.as_text()
