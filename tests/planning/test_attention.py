"""Attention in kernels, compiled for a TPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from das_jax.model.attention import Rule
from das_jax.model.attention.flash import flash_attention
from das_jax.model.attention.fused import fused_attention
from das_jax.planning.compiled import compile_program
from das_jax.planning.costs import Costs
from das_jax.planning.topology import open_topology


def test_long_texts_have_no_array_of_scores_and_windows_save_products() -> None:
    """Three kernels under `shard_map`, everything at once; their FLOPs are those of blocks that meet."""
    pytest.importorskip("libtpu")
    batch, length, heads, groups, size = 4, 2048, 4, 2, 64
    rule = Rule(dropout=0.1, causal=True, reach=600, cap=50.0)
    mesh = Mesh(np.array(open_topology("v5e:2x2").devices), ("data",))
    rows, everywhere = PartitionSpec("data"), PartitionSpec()

    def array(*shape: int, dtype: str = "bfloat16") -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch, *shape), dtype, sharding=NamedSharding(mesh, rows))

    def loss(query, key, value, mask, seed, segments):  # type: ignore[no-untyped-def]
        context = flash_attention(query, key, value, mask, rule, seed, segments)
        return jax.lax.psum(jnp.sum(context.astype(jnp.float32) ** 2), "data")

    step = jax.shard_map(
        jax.value_and_grad(loss, argnums=(0, 1, 2)),
        mesh=mesh,
        in_specs=rows,
        out_specs=(everywhere, rows),
    )
    lowered = jax.jit(step).lower(
        array(length, heads, size),
        *[array(length, groups, size)] * 2,
        array(length, dtype="bool"),
        array(2, dtype="uint32"),
        array(length, dtype="int32"),
    )
    module = compile_program("attention", lowered).module
    costs, flops = Costs(module), 0.0
    for computation in module.computations.values():
        for instruction in computation.values():
            assert all(x.dims.count(length) < 2 for x in instruction.arrays)
            if instruction.op == "custom-call":
                flops += costs.of(instruction, computation).flops
    pairs = (1 + 2 + 3 + 3) * 512**2  # A block of 512 reads its own and the two before it.
    assert flops == (2 + 3 + 4) * 2 * pairs * heads * size


def test_a_text_of_any_length_is_padded_on_the_chip() -> None:
    """Forward and backward, at the paper's length: arrays of scores there are none, and none that is longer
    than a text. What is counted is what is computed: two heads of 164 tokens in 176 rows and 384 columns.
    """
    pytest.importorskip("libtpu")
    batch, length, heads, size = 2, 164, 4, 64
    device = open_topology("v5e:1x1").devices[0]

    def array(*shape: int, dtype: str = "bfloat16") -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch, *shape), dtype, sharding=SingleDeviceSharding(device))

    def gradients(query, key, value, mask, seed, cotangent):  # type: ignore[no-untyped-def]
        rule = Rule(dropout=0.1)
        context, backward = jax.vjp(
            lambda *x: fused_attention(*x, mask, rule, seed), query, key, value
        )
        return context, backward(cotangent)

    of_heads = array(length, heads, size)
    lowered = jax.jit(gradients).lower(
        *[of_heads] * 3, array(length, dtype="bool"), array(2, dtype="uint32"), of_heads
    )
    module = compile_program("attention", lowered).module
    costs, ops = Costs(module), []
    for computation in module.computations.values():
        for instruction in computation.values():
            assert all(x.dims.count(length) < 2 for x in instruction.arrays)
            assert all(set(x.dims).isdisjoint((168, 176, 384)) for x in instruction.arrays)
            if "tpu_custom_call" in instruction.attributes:
                ops.append(costs.of(instruction, computation).vector_ops)
    scores = batch * heads // 2 * 176 * 384
    assert sorted(ops) == pytest.approx([scores * (16 + 2300 / 164), scores * (34 + 2500 / 164)])
