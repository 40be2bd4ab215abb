"""What may change a token's state and what may not, in models of every family."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from das_jax.model import huggingface
from das_jax.model.block import rules_of
from das_jax.model.huggingface_config import architecture_of
from das_jax.model.language_model import LanguageModel, Params
from das_jax.model.norms import RMSNorm
from tests.conftest import DECODERS, GOLDEN

LENGTH, REAL = 16, 12


def hidden(model: LanguageModel, params: Params, rows: list[np.ndarray], real: int) -> np.ndarray:
    """States of several texts in one batch, so that all are of one program."""
    tokens = jnp.asarray(np.stack(rows))
    mask = jnp.broadcast_to(jnp.arange(LENGTH) < real, tokens.shape)
    return np.asarray(jax.jit(model.encode)(params, tokens, mask))


def changed(tokens: np.ndarray, places: Any) -> np.ndarray:
    """Other tokens at some places."""
    other = tokens.copy()
    other[places] = tokens[places] % 60 + 7
    return other


def differs(a: np.ndarray, b: np.ndarray) -> list[int]:
    """The tokens whose states are not the same."""
    return np.flatnonzero(np.abs(a - b).max(axis=-1) > 1e-5).tolist()


@pytest.fixture(params=("bert", "roberta", "modernbert", *DECODERS), scope="module")
def loaded(request: pytest.FixtureRequest) -> huggingface.Checkpoint:
    return huggingface.load(GOLDEN / request.param / "model")


def test_later_tokens_and_padding(loaded: huggingface.Checkpoint) -> None:
    model = LanguageModel(loaded.architecture)
    tokens = np.random.default_rng(0).integers(7, 60, LENGTH)
    rows = [tokens, changed(tokens, slice(8, REAL)), changed(tokens, slice(REAL, None))]
    base, later, padding = hidden(model, loaded.params, rows, REAL)[:, :REAL]
    assert differs(base, padding) == []
    seen = differs(base, later)
    assert seen == list(range(8, REAL)) if loaded.architecture.causal else set(seen) > {8}
    if not loaded.architecture.causal:
        assert min(seen) < 8


@pytest.mark.parametrize(
    ("family", "layer", "near"),
    [
        # W of a decoder counts the token itself; ModernBERT looks half of its window both ways.
        ("gemma2", 0, range(5, 9)),
        ("gemma3", 0, range(5, 10)),
        ("modernbert", 1, range(2, 9)),
    ],
)
def test_a_window_ends_where_it_says(family: str, layer: int, near: range) -> None:
    checkpoint = huggingface.load(GOLDEN / family / "model")
    arch = checkpoint.architecture
    part = slice(layer, layer + 1)
    alone = replace(
        arch,
        num_layers=1,
        first_norm=True,
        reaches=arch.reaches[part],
        rotary_of_layers=arch.rotary_of_layers[part],
    )
    own = jax.tree.map(lambda x: x[part], checkpoint.params["layers"])
    tokens = np.random.default_rng(1).integers(7, 60, LENGTH)
    rows = [tokens, changed(tokens, 5)]
    base, other = hidden(LanguageModel(alone), {**checkpoint.params, "layers": own}, rows, LENGTH)
    assert differs(base, other) == list(near)


def test_a_window_as_long_as_the_text_is_none() -> None:
    for family, length, rules in (("gemma3", 5, 1), ("gemma3", 6, 2), ("modernbert", 128, 2)):
        arch = architecture_of(GOLDEN / family / "model")
        if family == "modernbert":
            arch = replace(arch, reaches=(None, 64, 64, None))  # As they are in the real one.
        different, numbers = rules_of(arch, length)
        assert len(different) == rules, (family, length)
        assert len(numbers) == arch.num_layers


def test_gemmas_scales_count_from_one() -> None:
    x = jnp.asarray(np.random.default_rng(2).normal(size=(3, 8)), jnp.float32)
    x = x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True))
    for offset in (0.0, 1.0):
        scale = jnp.full(8, 1 - offset)
        y = RMSNorm(1e-12, offset, jnp.float32).apply({"params": {"scale": scale}}, x)
        np.testing.assert_allclose(y, x, rtol=1e-5)


def swapped(params: Params, one: str, other: str, part: str) -> Params:
    own = params["layers"][part]
    layers = {**params["layers"], part: {**own, one: own[other], other: own[one]}}
    return {**params, "layers": layers}


@pytest.mark.parametrize(
    ("one", "other", "part"),
    [("gate", "intermediate", "feed_forward"), ("key", "query", "attention")],
)
def test_halves_of_a_fused_tensor_are_not_alike(one: str, other: str, part: str) -> None:
    """Activated and not; what is looked for, and what is found by it."""
    checkpoint = huggingface.load(GOLDEN / "modernbert" / "model")
    encode: Callable[..., jax.Array] = jax.jit(LanguageModel(checkpoint.architecture).encode)
    tokens = jnp.asarray(np.random.default_rng(3).integers(7, 60, (1, LENGTH)))
    mask = jnp.ones_like(tokens, bool)
    states = [
        encode(params, tokens, mask)
        for params in (checkpoint.params, swapped(checkpoint.params, one, other, part))
    ]
    assert np.abs(states[0] - states[1]).max() > 1e-2
