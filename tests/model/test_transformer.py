from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from das_jax.data.batch import Batch
from das_jax.model.language_model import LanguageModel, Params
from das_jax.model.units import Units, full_units
from das_jax.planning.architectures import KNOWN


def gradients(
    model: LanguageModel, params: Params, batch: Batch, gates: Units | None = None
) -> Params:
    """Of something that every parameter of the encoder moves, dropout on."""

    @jax.jit
    @jax.grad
    def gradient(params: Params) -> jax.Array:
        keys = batch.example_keys(jax.random.key(0))
        hidden = model.encode(params, batch.tokens, model.mask(batch.tokens), gates, keys)
        return jnp.sum(hidden * jnp.cos(jnp.arange(hidden.size).reshape(hidden.shape)))

    return gradient(params)


@pytest.mark.parametrize("remat", ["selective", "full"])
def test_remat_changes_nothing_but_memory(
    remat: str, model: LanguageModel, params: Params, batch: Batch
) -> None:
    expected = gradients(model, params, batch)
    actual = gradients(replace(model, remat=remat), params, batch)
    largest = max(np.abs(e).max() for e in jax.tree.leaves(expected))
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, atol=1e-6 * largest)


def test_selective_remat_keeps_five_hidden_states_and_the_feed_forward_one(
    model: LanguageModel, params: Params, batch: Batch
) -> None:
    """Of a layer: its input, keys, values, two sums before LayerNorm, and what is before the activation."""
    arch = model.architecture

    def kept(remat: str) -> int:
        """Features of a token in a layer that the backward pass finds."""

        def encode(params: Params) -> jax.Array:
            keys = batch.example_keys(jax.random.key(0))
            mask = model.mask(batch.tokens)
            return replace(model, remat=remat).encode(params, batch.tokens, mask, None, keys)

        _, backward = jax.vjp(encode, params)
        rows = (arch.num_layers, *batch.tokens.shape)
        sizes = [x.size for x in jax.tree.leaves(backward) if x.shape[:3] == rows]
        return sum(sizes) // np.prod(rows)

    assert kept("selective") == 5 * arch.hidden_size + arch.intermediate_size
    assert kept("full") == arch.hidden_size
    assert kept("none") > kept("selective")


def test_selective_remat_runs_no_kernel_of_a_decoder_again() -> None:
    """It keeps a layer's input, the sum before its feed-forward and that one's two factors; and queries,
    keys, values and context vectors, all heads of a token side by side. The last sum nothing reads.
    """
    decoder = replace(KNOWN["HuggingFaceTB/SmolLM2-135M"], num_layers=2, vocab_size=64)
    model = LanguageModel(decoder, attention="flash")
    params = jax.eval_shape(model.init, jax.random.key(0))
    tokens = jnp.zeros((2, 256), jnp.int32)

    def hidden(params: Params, remat: str) -> jax.Array:
        return replace(model, remat=remat).encode(params, tokens, jnp.ones_like(tokens))

    def kernels(remat: str) -> int:
        def total(params: Params) -> jax.Array:
            return jnp.sum(hidden(params, remat))

        return str(jax.make_jaxpr(jax.grad(total))(params)).count("pallas_call[")

    assert kernels("full") > kernels("selective") == kernels("none") > 0
    kept = jax.eval_shape(
        lambda params: jax.vjp(lambda p: hidden(p, "selective"), params)[1], params
    )
    rows = (decoder.num_layers, *tokens.shape)
    sizes = [
        x.shape[-1] for x in jax.tree.leaves(kept) if x.shape[:3] == rows and len(x.shape) == 4
    ]
    width, heads = decoder.hidden_size, 2 * decoder.num_heads + 2 * decoder.kv_heads
    assert sum(sizes) == 2 * width + 2 * decoder.intermediate_size + heads * decoder.head_size


def test_unrolled_layers_are_the_scanned_ones(
    model: LanguageModel, params: Params, batch: Batch
) -> None:
    expected = gradients(model, params, batch)
    for remat in ("none", "selective"):
        actual = gradients(replace(model, remat=remat, unrolled=True), params, batch)
        largest = max(np.abs(e).max() for e in jax.tree.leaves(expected))
        for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, e, atol=1e-6 * largest)


def test_gates_of_one_change_nothing_and_absent_gates_cost_nothing(
    model: LanguageModel, params: Params, batch: Batch
) -> None:
    mask = model.mask(batch.tokens)

    def encode(params: Params, gates: Units | None) -> jax.Array:
        return model.encode(params, batch.tokens, mask, gates)

    ones = full_units(model.architecture, 1.0)
    np.testing.assert_allclose(
        jax.jit(encode)(params, ones), jax.jit(encode)(params, None), atol=1e-6
    )

    def multiplications(gates: Units | None) -> int:
        return str(jax.make_jaxpr(encode)(params, gates)).count(" mul ")

    # One multiplication for heads, intermediate and output neurons, in the body of the scan.
    assert multiplications(ones) - multiplications(None) == 3


def test_a_gate_of_zero_removes_its_unit_for_its_example_only(
    model: LanguageModel, params: Params, batch: Batch
) -> None:
    mask = model.mask(batch.tokens)
    encode = jax.jit(lambda gates: model.encode(params, batch.tokens, mask, gates))
    rows = batch.tokens.shape[0]
    gates = full_units(model.architecture, 1.0, (rows,))
    plain = encode(gates)
    for kind in Units._fields:
        closed = gates._replace(**{kind: getattr(gates, kind).at[2, 1, 3].set(0.0)})
        changed = np.abs(encode(closed) - plain).max(axis=(1, 2)) > 1e-4
        np.testing.assert_array_equal(changed, np.arange(rows) == 2)
    # A head without output is a head whose rows of the output projection are zero.
    closed = gates._replace(heads=gates.heads.at[:, 1, 3].set(0.0))
    kernel = params["layers"]["attention"]["output"]["kernel"].at[1, 3].set(0.0)
    without = jax.tree.map(lambda x: x, params)
    without["layers"]["attention"]["output"]["kernel"] = kernel
    np.testing.assert_allclose(encode(closed), model.encode(without, batch.tokens, mask), atol=1e-5)


def test_padding_changes_no_real_token(model: LanguageModel, params: Params, batch: Batch) -> None:
    encode = jax.jit(lambda tokens: model.encode(params, tokens, model.mask(tokens)))
    long = jnp.pad(batch.tokens, ((0, 0), (0, 2)), constant_values=model.architecture.pad_token_id)
    real = np.asarray(model.mask(batch.tokens))
    np.testing.assert_allclose(encode(long)[:, :-2][real], encode(batch.tokens)[real], atol=1e-5)


def test_logits_at_some_positions_are_those_of_all(
    model: LanguageModel, params: Params, batch: Batch
) -> None:
    hidden = model.encode(params, batch.tokens, model.mask(batch.tokens))
    positions = jnp.tile(jnp.array([3, 0, 7]), (8, 1))
    some, everywhere = model.logits(params, hidden, positions), model.logits(params, hidden)
    np.testing.assert_allclose(some, everywhere[:, [3, 0, 7]], atol=1e-6)


def test_bfloat16_products_stay_near_float32_and_losses_are_float32(
    model: LanguageModel, params: Params, batch: Batch
) -> None:
    low = replace(model, dtype=jnp.bfloat16)
    mask = model.mask(batch.tokens)
    hidden = low.encode(params, batch.tokens, mask)
    assert hidden.dtype == jnp.bfloat16
    logits = low.logits(params, hidden)
    assert logits.dtype == jnp.float32
    expected = model.logits(params, model.encode(params, batch.tokens, mask))
    real = np.asarray(mask)
    difference = np.abs(logits - expected)[real].max() / np.abs(expected)[real].max()
    assert 1e-5 < difference < 0.05
