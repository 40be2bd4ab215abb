from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from das_jax.continual import importance_map
from das_jax.continual.importance import RawImportance
from das_jax.errors import UserError
from das_jax.model.masked_lm import MaskedLM
from das_jax.model.units import Units, unit_shapes


def units(model: MaskedLM, seed: int, leading: tuple[int, ...] = ()) -> Units:
    generator = np.random.default_rng(seed)
    shapes = unit_shapes(model.architecture).values()
    return Units(*(generator.random((*leading, *s)).astype(np.float32) for s in shapes))


@pytest.fixture
def saved(model: MaskedLM, tmp_path: Path) -> Path:
    raw = RawImportance(units(model, 0), units(model, 1), units(model, 2, (2,)), examples=7)
    path = tmp_path / "map.safetensors"
    importance_map.save(path, model.architecture, raw, units(model, 3), units(model, 4))
    return path


def test_a_map_comes_back_as_it_was(model: MaskedLM, saved: Path) -> None:
    loaded = importance_map.load(saved, model.architecture)
    for group, seed in ((loaded.raw, 0), (loaded.own, 3), (loaded.importance, 4)):
        for actual, expected in zip(group, units(model, seed), strict=True):
            np.testing.assert_array_equal(actual, expected)


def test_the_map_of_another_model_is_refused(model: MaskedLM, saved: Path) -> None:
    # The same shapes, but another model: its LayerNorms differ.
    other = replace(model.architecture, layer_norm_eps=1e-12)
    with pytest.raises(UserError, match="belongs to another model"):
        importance_map.load(saved, other)


def test_a_file_that_is_cut_short_absent_or_something_else_is_refused(
    model: MaskedLM, saved: Path
) -> None:
    cut = saved.with_name("cut.safetensors")
    cut.write_bytes(saved.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"cut\.safetensors cannot be read"):
        importance_map.load(cut, model.architecture)
    with pytest.raises(UserError, match="does not exist"):
        importance_map.load(saved.with_name("absent"), model.architecture)
    weights = Path(__file__).parents[1] / "golden" / "bert" / "model" / "model.safetensors"
    with pytest.raises(UserError, match="is no importance map"):
        importance_map.load(weights, model.architecture)


def write_published(directory: Path, values: Units) -> None:
    for kind, name in importance_map.PUBLISHED_FILES.items():
        np.save(directory / name, getattr(values, kind))


def test_published_arrays_are_raw_maps_without_sign(model: MaskedLM, tmp_path: Path) -> None:
    values = units(model, 5)
    write_published(tmp_path, values._replace(heads=-values.heads))
    loaded = importance_map.load_published(tmp_path, model.architecture)
    for actual, expected in zip(loaded, values, strict=True):
        np.testing.assert_array_equal(actual, expected)


def test_published_arrays_that_do_not_fit_are_refused(model: MaskedLM, tmp_path: Path) -> None:
    values = units(model, 5)
    write_published(tmp_path, values._replace(output=values.output[:, 1:]))
    with pytest.raises(
        UserError, match=r"output_impt\.npy has shape \[2, 15\], this model needs \[2, 16\]"
    ):
        importance_map.load_published(tmp_path, model.architecture)
    (tmp_path / "head_impt.npy").unlink()
    with pytest.raises(UserError, match=r"head_impt\.npy does not exist"):
        importance_map.load_published(tmp_path, model.architecture)


def test_nothing_in_a_published_array_is_executed(model: MaskedLM, tmp_path: Path) -> None:
    write_published(tmp_path, units(model, 5))
    np.save(tmp_path / "head_impt.npy", np.array([[{}] * 4] * 2, object), allow_pickle=True)
    with pytest.raises(UserError, match="is not a plain array of numbers"):
        importance_map.load_published(tmp_path, model.architecture)
