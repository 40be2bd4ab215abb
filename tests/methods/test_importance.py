from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from das_jax.data.batch import Batch
from das_jax.data.objective import HiddenTokens
from das_jax.methods.das import importance
from das_jax.methods.das.das import DAS, DASSettings
from das_jax.methods.das.importance import GateGradientSums, gate_gradients, normalise
from das_jax.model.language_model import LanguageModel, Params
from das_jax.model.units import Units, full_units
from das_jax.training.sharding import make_sharding
from das_jax.training.sums import compile_sums

LOSSES = {
    "masked_lm": importance.LM,
    "hidden": importance.proxy("hidden"),
    "vocabulary": importance.proxy("vocabulary"),
}


@pytest.fixture
def method(model: LanguageModel, objective: HiddenTokens) -> DAS:
    return DAS(model, objective, DASSettings())


@pytest.mark.parametrize("name", LOSSES)
def test_one_backward_pass_holds_every_examples_own_gradient(
    name: str, method: DAS, params: Params, batch: Batch
) -> None:
    rng = jax.random.key(3)
    together = jax.jit(partial(gate_gradients, method, LOSSES[name]))(params, batch, rng)

    @jax.jit
    @partial(jax.grad, argnums=1)
    def gradient(alone: Batch, gates: Units) -> jax.Array:
        return LOSSES[name].per_example(method, params, alone, rng, gates).sum()

    for n in range(batch.tokens.shape[0]):
        alone = jax.tree.map(lambda x, n=n: x[n : n + 1], batch)
        own = gradient(alone, full_units(method.model.architecture, 1.0, (1,)))
        for all_examples, one in zip(together, own, strict=True):
            scale = np.abs(one).max()
            np.testing.assert_allclose(all_examples[n], one[0], atol=1e-4 * scale)


@pytest.mark.parametrize("name", LOSSES)
def test_the_sums_do_not_depend_on_the_mesh(
    name: str, method: DAS, params: Params, batch: Batch
) -> None:
    rng = jax.random.key(3)
    expected = jax.jit(GateGradientSums(method, LOSSES[name]))(params, batch, rng)
    sharding = make_sharding(4)
    function = GateGradientSums(replace(method, axis_name=sharding.batch), LOSSES[name])
    compiled = compile_sums(function, sharding)
    actual = compiled(sharding.replicate(params), sharding.shard_batch(batch), rng)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-3, atol=1e-5 * np.abs(e).max())


def test_rows_that_only_fill_a_batch_up_count_nothing(
    method: DAS, params: Params, batch: Batch
) -> None:
    function = jax.jit(GateGradientSums(method, importance.LM))
    short = jax.tree.map(lambda x: x[:5], batch)
    filled = batch._replace(weight=jnp.arange(8) < 5)
    a, b = (function(params, x, jax.random.key(0)) for x in (short, filled))
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7)


def test_the_proxy_is_not_zero_and_needs_dropout(method: DAS, params: Params, batch: Batch) -> None:
    """Row 1 of the fidelity table: without dropout both branches are equal and the KL says nothing."""
    gates = full_units(method.model.architecture, 1.0, (batch.tokens.shape[0],))
    rng = jax.random.key(0)
    proxy = LOSSES["hidden"]
    with_dropout = proxy.per_example(method, params, batch, rng, gates)
    assert (with_dropout > 1e-3).all()
    arch = replace(method.model.architecture, hidden_dropout=0.0, attention_dropout=0.0)
    without = replace(method, model=replace(method.model, architecture=arch))
    sums = jax.jit(GateGradientSums(without, proxy))(params, batch, rng)
    _, warning = importance.self_test(importance.raw_importance(sums))
    assert warning is not None
    assert "rounding noise" in warning
    assert np.abs(proxy.per_example(without, params, batch, rng, gates)).max() < 1e-6


def test_mean_and_standard_error_are_those_of_the_examples(
    method: DAS, params: Params, batch: Batch
) -> None:
    rng = jax.random.key(0)
    losses = importance.LM
    gradients = jax.jit(partial(gate_gradients, method, losses))(params, batch, rng)
    sums = jax.jit(GateGradientSums(method, losses))(params, batch, rng)
    raw = importance.raw_importance(sums)
    assert raw.examples == 8
    for kind in Units._fields:
        absolute = np.abs(getattr(gradients, kind))
        np.testing.assert_allclose(getattr(raw.mean, kind), absolute.mean(axis=0), rtol=1e-5)
        expected = stats.sem(absolute, axis=0)
        np.testing.assert_allclose(
            getattr(raw.standard_error, kind), expected, rtol=1e-2, atol=1e-3 * expected.max()
        )
        np.testing.assert_allclose(
            getattr(raw.halves, kind)[1], absolute[1::2].mean(axis=0), rtol=1e-5
        )


def units_of(values: np.ndarray) -> Units:
    return Units(values, values, values)


@given(arrays(np.float32, (3, 17), elements=st.floats(0, 1, width=32)), st.integers(-60, 30))
@settings(max_examples=60)
def test_normalisations_lie_in_0_1_and_ignore_scale(raw: np.ndarray, exponent: int) -> None:
    for normalization in ("paper", "one_sided", "rank"):
        a = normalise(units_of(raw), normalization).heads
        assert (a >= 0).all()
        assert (a <= 1).all()
        b = normalise(units_of(raw * np.float32(2.0**exponent)), normalization).heads
        if np.ptp(raw, axis=-1).min() > 1e-3:
            np.testing.assert_allclose(a, b, atol=1e-4)


def test_the_alternatives_protect_the_important_and_not_the_unimportant() -> None:
    raw = units_of(np.array([[0.0, 1.0, 2.0, 3.0, 10.0]], np.float32))
    paper, one_sided, rank = (normalise(raw, n).heads[0] for n in ("paper", "one_sided", "rank"))
    assert paper[0] > 0.5 > paper[2]
    assert one_sided[0] == 0
    assert one_sided[4] > 0.9
    np.testing.assert_allclose(rank, [0, 0.25, 0.5, 0.75, 1])


def test_a_layer_of_equal_units_protects_nothing() -> None:
    for normalization in ("paper", "one_sided"):
        assert not normalise(units_of(np.full((1, 7), 3.0)), normalization).heads.any()


def test_the_floor_keeps_a_mean_of_movement_and_the_order() -> None:
    importance_LxU = units_of(np.array([[1.0, 0.9, 0.8], [0.1, 0.2, 0.0]], np.float32))
    floored = importance.with_floor(importance_LxU, 0.4).heads
    np.testing.assert_allclose(1 - floored[0].mean(), 0.4, rtol=1e-6)
    np.testing.assert_allclose(floored[1], importance_LxU.heads[1])
    assert (np.argsort(floored[0]) == np.argsort(importance_LxU.heads[0])).all()


def test_the_self_test_tells_a_map_from_noise() -> None:
    """Two unrelated maps have a cosine of 0.78 after normalisation; their rank correlation is near 0."""
    generator = np.random.default_rng(0)
    truth = generator.random((1, 2, 300))
    same = truth + 0.05 * generator.random((2, 2, 300))
    noise = generator.normal(size=(2, 2, 300))
    normalised = normalise(units_of(noise[0].astype(np.float32))).heads
    other = normalise(units_of(noise[1].astype(np.float32))).heads
    cosine = (normalised * other).sum() / np.linalg.norm(normalised) / np.linalg.norm(other)
    assert cosine > 0.7

    raw = importance.RawImportance(units_of(truth[0]), units_of(truth[0]), units_of(same), 10)
    correlations, warning = importance.self_test(raw)
    assert min(correlations.values()) > 0.9
    assert warning is None
    correlations, warning = importance.self_test(raw._replace(halves=units_of(noise)))
    assert max(correlations.values()) < 0.2
    assert warning is not None
    assert "heads" in warning
    assert "method.importance.examples" in warning


def test_two_heads_are_too_few_to_be_called_noise() -> None:
    halves = np.array([[[1.0, 2.0]], [[2.0, 1.0]]])
    raw = importance.RawImportance(units_of(halves[0]), units_of(halves[0]), units_of(halves), 10)
    correlations, warning = importance.self_test(raw)
    assert correlations["heads"] < -0.99
    assert warning is None
