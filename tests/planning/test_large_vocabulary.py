"""A vocabulary of 262,144 words on one chip of a TPU v5e, as its compiler makes the program."""

import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from das_jax.model.blocked_logits import BlockedLogits, Unembedding
from das_jax.objectives.divergence import vocabulary_kl
from das_jax.objectives.lm_loss import lm_loss
from das_jax.planning.compiled import compile_program
from das_jax.planning.estimate import estimate
from das_jax.planning.topology import open_topology

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None,
        reason="the extra `plan` (libtpu) is not installed",
    ),
    pytest.mark.slow,
]

TOKENS, WIDTH, WORDS = 4096, 1152, 262_144

Compile = Callable[[Callable[..., Any]], tuple[float, int]]


@pytest.fixture
def compiled(optimised: None) -> Compile:
    """Compiles a function of the table, hidden states and labels: how many products of all tokens with the
    table it has, and its peak of memory, bytes.
    """
    topology = open_topology("v5e:1x1")
    mesh = jax.make_mesh((1,), ("data",), devices=topology.devices, axis_types=(AxisType.Auto,))
    place = NamedSharding(mesh, PartitionSpec())
    shapes = (
        ((WORDS, WIDTH), jnp.float32),
        ((TOKENS, WIDTH), jnp.bfloat16),
        ((TOKENS,), jnp.int32),
    )
    arguments = [jax.ShapeDtypeStruct(*shape, sharding=place) for shape in shapes]

    def compile_one(function: Callable[..., Any]) -> tuple[float, int]:
        program = compile_program("loss", jax.jit(function).lower(*arguments))
        arrays = (x for i in program.module.instructions() for x in i.arrays)
        assert max(x.elements for x in arrays) < TOKENS * WORDS / 2
        flops = estimate(program.module, topology.chip, topology.devices).flops
        return flops / (2 * TOKENS * WIDTH * WORDS), program.peak_bytes

    return compile_one


def logits(table: jax.Array, hidden: jax.Array, block: int) -> BlockedLogits:
    return BlockedLogits(Unembedding(table, dtype=jnp.bfloat16, cap=30.0, block=block), hidden)


def test_the_loss_has_three_products_and_a_peak_linear_in_the_block(compiled: Compile) -> None:
    def train(block: int) -> tuple[float, int]:
        def loss(table: jax.Array, hidden: jax.Array, labels: jax.Array) -> jax.Array:
            return lm_loss(logits(table, hidden, block), labels, z_loss=1e-4).loss

        return compiled(jax.value_and_grad(loss, (0, 1)))

    (products, peak), (more_products, more) = train(512), train(1024)
    assert products == pytest.approx(3, rel=1e-3)
    assert more_products == pytest.approx(3, rel=1e-3)
    assert more - peak == pytest.approx(4 * 512 * WORDS, rel=0.05)


def test_the_divergence_of_two_passes_computes_nothing_twice(compiled: Compile) -> None:
    def kl(table: jax.Array, hidden: jax.Array, labels: jax.Array) -> jax.Array:
        pair = (logits(table, x, 512) for x in (hidden, hidden[::-1]))
        return jnp.sum(jnp.sin(vocabulary_kl(*pair)))

    products, _ = compiled(jax.value_and_grad(kl, 1))
    assert products == pytest.approx(4, rel=1e-3)
