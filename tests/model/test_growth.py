"""Grown models: what stays, what parts, and that transformers computes the same."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM

from das_jax.model import huggingface
from das_jax.model.growth import Maps, grown, grown_architecture, maps_between
from das_jax.model.huggingface import Checkpoint
from das_jax.model.language_model import LanguageModel, Params
from das_jax.model.units import shapes_by_path

TOKENS = np.array([[2, 5, 9, 3, 11, 12, 3], [7, 3, 20, 4, 3, 8, 6]])
RANDOM = np.random.default_rng(0)


def grow(checkpoint: Checkpoint, maps: Maps, noise: float = 0.0) -> Checkpoint:
    architecture = grown_architecture(checkpoint.architecture, maps)
    params = grown(checkpoint.params, checkpoint.architecture, maps, noise, jax.random.key(3))
    return checkpoint._replace(architecture=architecture, params=params)


def torch_logits(directory: Path) -> np.ndarray:
    model, info = AutoModelForMaskedLM.from_pretrained(directory, output_loading_info=True)
    assert not any(info.values()), info
    with torch.no_grad():
        return model.eval()(torch.tensor(TOKENS)).logits.numpy()


def exported(checkpoint: Checkpoint, directory: Path) -> Path:
    params = jax.device_get(checkpoint.params)
    huggingface.export(directory, params, checkpoint.config, checkpoint.architecture)
    return directory


@pytest.mark.parametrize(("family", "tied"), [("bert", True), ("roberta", False)])
def test_a_wider_model_computes_the_same_and_a_deeper_one_another_thing(
    family: str, tied: bool, stored: Callable[..., Path], tmp_path: Path
) -> None:
    """In transformers; with noise between the copies, too."""
    directory = stored(family, tied)
    base = huggingface.load(directory)
    sizes = {"intermediate_size": 56, "hidden_size": 48, "num_heads": 6}
    wider = dataclasses.replace(base.architecture, **sizes)
    maps = maps_between(base.architecture, wider, RANDOM)
    larger = grow(base, maps, noise=0.1)
    assert larger.architecture == wider
    before = torch_logits(directory)
    after = torch_logits(exported(larger, tmp_path / "wider"))
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-5 * np.abs(before).max())
    reloaded = huggingface.load(tmp_path / "wider")
    assert reloaded.architecture == wider
    assert reloaded.weights_hash() == larger.weights_hash()

    deeper = grow(base, {**maps, "L": np.array([0, 1, 1, 2])})
    model, params = LanguageModel(deeper.architecture), jax.device_get(deeper.params)
    mask = np.ones(TOKENS.shape, bool)
    ours = jax.jit(lambda p: model.logits(p, model.encode(p, TOKENS, mask)))(params)
    theirs = torch_logits(exported(deeper, tmp_path / "deeper"))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())
    assert np.abs(theirs - before).max() > 0.01


def test_noise_sums_to_nothing_over_copies_and_is_only_there(
    model: LanguageModel, params: Params
) -> None:
    old = model.architecture
    maps = {"F": np.r_[:24, 0, 1, 1, 2, 2, 2]}
    plain, noisy = (
        grown(params, old, maps, noise, jax.random.key(1))["layers"] for noise in (0.0, 0.25)
    )
    changed = jax.tree.map(lambda a, b: np.asarray(a - b), noisy, plain)
    reads = changed["feed_forward"]["output"].pop("kernel")
    assert not any(x.any() for x in jax.tree.leaves(changed))
    for unit in range(24):
        copies = maps["F"] == unit
        assert reads[:, copies].any() == (copies.sum() > 1)
        np.testing.assert_allclose(reads[:, copies].sum(axis=1), 0, atol=1e-6)
    kernel = np.asarray(plain["feed_forward"]["output"]["kernel"])
    copied = np.isin(maps["F"], (0, 1, 2))
    for layer in (0, 1):
        assert reads[layer, copied].std() == pytest.approx(0.25 * kernel[layer].std(), rel=0.15)


def test_noise_parts_what_copies_learn(model: LanguageModel, params: Params) -> None:
    """Without it a copy has the gradient of its original, for ever."""
    maps = {
        "F": np.r_[:24, :24],
        "D": np.r_[:16, :16],
        "H": np.r_[:4, :4],
    }
    larger = LanguageModel(grown_architecture(model.architecture, maps))

    def loss(params: Params) -> jax.Array:
        hidden = larger.encode(params, TOKENS, np.ones(TOKENS.shape, bool))
        return jnp.square(larger.logits(params, hidden)[..., :5]).mean()

    gradient = jax.jit(jax.grad(loss))
    for noise in (0.0, 0.01):
        start = grown(params, model.architecture, maps, noise, jax.random.key(1))
        found = jax.device_get(gradient(start))
        layers = found["layers"]
        for kernel, axis in (
            (layers["feed_forward"]["intermediate"]["kernel"], 2),
            (layers["attention"]["value"]["kernel"], 2),
            (found["embeddings"]["word"]["embedding"], 1),
        ):
            one, other = np.split(kernel, 2, axis=axis)
            apart = np.abs(one - other).max() / np.abs(kernel).max()
            assert (apart > 1e-4) if noise else (apart < 1e-5)


def test_what_copies_what(model: LanguageModel) -> None:
    """No unit a second time before every other one; every layer's copy after it, spread over the depth."""
    old = dataclasses.replace(model.architecture, num_layers=7)
    sizes = {"num_layers": 10, "hidden_size": 48, "num_heads": 12, "intermediate_size": 56}
    new = dataclasses.replace(old, **sizes)
    maps = maps_between(old, new, RANDOM)
    assert grown_architecture(old, maps) == new
    assert maps["L"].tolist() == [0, 1, 1, 2, 3, 3, 4, 5, 5, 6]
    for letter, few, many in ("D", 3, 3), ("H", 3, 3), ("F", 2, 3):
        copies = np.bincount(maps[letter])
        assert (copies.min(), copies.max()) == (few, many)
        assert maps[letter][: len(copies)].tolist() == list(range(len(copies)))
    assert maps_between(old, old, RANDOM) == {}
    doubled = maps_between(old, dataclasses.replace(old, num_layers=14), RANDOM)
    assert doubled["L"].tolist() == sorted([*range(7)] * 2)
    params = jax.eval_shape(LanguageModel(old).init, jax.random.key(0))
    shapes = jax.eval_shape(lambda p: grown(p, old, maps), params)
    assert shapes_by_path(shapes) == shapes_by_path(
        jax.eval_shape(LanguageModel(new).init, jax.random.key(0))
    )
