"""The kernel, interpreted, against the dense form; the dense form is compared with torch elsewhere."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from das_jax.data.batch import Batch
from das_jax.model.attention import dense_attention
from das_jax.model.fused_attention import fused_attention
from das_jax.model.masked_lm import MaskedLM, Params


@pytest.mark.parametrize("rate", [0.0, 0.25])
@pytest.mark.parametrize(
    ("batch", "length", "heads", "size"),
    [(4, 16, 4, 64), (2, 24, 3, 16)],
    ids=["two heads a block", "all heads a block"],
)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-6), ("bfloat16", 2e-2)])
def test_the_kernel_is_the_dense_form(
    batch: int, length: int, heads: int, size: int, rate: float, dtype: str, tolerance: float
) -> None:
    keys = jax.random.split(jax.random.key(0), 5)
    *arrays, cotangent = (
        jax.random.normal(key, (batch, length, heads, size)).astype(dtype) for key in keys[:4]
    )
    mask = jnp.arange(length)[None] < jnp.arange(length, length - batch, -1)[:, None]
    seed = jax.random.bits(keys[4], (batch, 2), jnp.uint32) if rate else None
    results = []
    for attention in (dense_attention, fused_attention):
        context, backward = jax.vjp(lambda *x, f=attention: f(*x, mask, rate, seed), *arrays)
        results.append((context, *backward(cotangent)))
    for expected, actual in zip(*results, strict=True):
        assert actual.dtype == expected.dtype
        largest = np.abs(np.asarray(expected, np.float32)).max()
        np.testing.assert_allclose(
            np.asarray(actual, np.float32),
            np.asarray(expected, np.float32),
            atol=tolerance * largest,
        )


def test_the_model_runs_on_either_and_on_every_mesh(
    model: MaskedLM, params: Params, batch: Batch
) -> None:
    """Dropout on: shards that hold other texts must draw other bits."""

    def encode(model: MaskedLM, params: Params, batch: Batch) -> jax.Array:
        keys = batch.example_keys(jax.random.key(1))
        mask = model.mask(batch.tokens)
        return model.encode(params, batch.tokens, mask, dropout_keys_B=keys)

    fused = replace(model, attention="fused")
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.shard_map(
        lambda params, batch: encode(fused, params, batch),
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec("data")),
        out_specs=PartitionSpec("data"),
        check_vma=False,  # The interpreter of kernels does not keep to its rules.
    )
    expected = jax.jit(lambda params, batch: encode(model, params, batch))(params, batch)
    real = np.asarray(model.mask(batch.tokens))
    for actual in (
        jax.jit(sharded)(params, batch),
        jax.jit(lambda p, b: encode(fused, p, b))(params, batch),
    ):
        np.testing.assert_allclose(actual[real], expected[real], atol=2e-5)
