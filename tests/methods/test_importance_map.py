"""Map files come back as they were, belong to one model, and are never executed."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from das_jax.errors import UserError
from das_jax.methods.das import importance_map
from das_jax.methods.das.importance import RawImportance
from das_jax.model.architecture import Architecture
from das_jax.model.language_model import LanguageModel
from das_jax.model.units import Units, unit_shapes


def random_units(architecture: Architecture, seed: int, *leading: int) -> Units:
    generator = np.random.default_rng(seed)
    shapes = unit_shapes(architecture).values()
    return Units(*(generator.random((*leading, *shape)).astype(np.float32) for shape in shapes))


@pytest.fixture
def architecture(model: LanguageModel) -> Architecture:
    return model.architecture


@pytest.fixture
def stored(tmp_path: Path, architecture: Architecture) -> Path:
    raw = RawImportance(
        mean=random_units(architecture, 0),
        standard_error=random_units(architecture, 1),
        halves=random_units(architecture, 2, 2),
        examples=24,
    )
    path = tmp_path / "acl.safetensors"
    own, accumulated = random_units(architecture, 3), random_units(architecture, 4)
    importance_map.save(path, architecture, raw, own, accumulated)
    return path


def test_what_is_saved_comes_back(stored: Path, architecture: Architecture) -> None:
    loaded = importance_map.load(str(stored), architecture)
    for units, seed in ((loaded.raw, 0), (loaded.own, 3), (loaded.importance, 4)):
        for actual, expected in zip(units, random_units(architecture, seed), strict=True):
            np.testing.assert_array_equal(actual, expected)
    tensors = load_file(stored)
    assert tensors["halves.heads"].shape == (2, 2, 4)
    np.testing.assert_array_equal(
        tensors["standard_error.output"], random_units(architecture, 1).output
    )
    with safe_open(stored, framework="numpy") as file:
        assert file.metadata()["examples"] == "24"


def test_views_of_device_arrays_are_saved_in_order(
    tmp_path: Path, architecture: Architecture
) -> None:
    """Safetensors writes the memory of an array as it lies, whatever its strides."""
    transposed = Units(*(jax.numpy.asarray(x).T.copy().T for x in random_units(architecture, 0)))
    halves = random_units(architecture, 2, 2)
    path = tmp_path / "map.safetensors"
    raw = RawImportance(transposed, transposed, halves, 1)
    importance_map.save(path, architecture, raw, transposed, transposed)
    np.testing.assert_array_equal(
        importance_map.load(path, architecture).importance.intermediate,
        random_units(architecture, 0).intermediate,
    )


@pytest.mark.parametrize(
    "change", [{"num_heads": 2}, {"vocab_size": 65}, {"layer_norm_eps": 1e-12}]
)
def test_the_map_of_another_model(
    stored: Path, architecture: Architecture, change: dict[str, float]
) -> None:
    other = dataclasses.replace(architecture, **change)
    with pytest.raises(UserError, match=r"belongs to another model .* measure this model with"):
        importance_map.load(stored, other)


def test_a_map_that_is_not_there(tmp_path: Path, architecture: Architecture) -> None:
    with pytest.raises(UserError, match="does not exist; make one with `das-jax importance`"):
        importance_map.load(tmp_path / "acl.safetensors", architecture)


@pytest.mark.parametrize("left", [0, 4, 500, -1])
def test_a_map_that_was_cut_short(stored: Path, architecture: Architecture, left: int) -> None:
    stored.write_bytes(stored.read_bytes()[:left])
    with pytest.raises(UserError, match=r"acl\.safetensors cannot be read \(.*measure it again"):
        importance_map.load(stored, architecture)


def test_safetensors_that_are_no_map(tmp_path: Path, architecture: Architecture) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"weight": np.ones(3, np.float32)}, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match="is no importance map; make one with"):
        importance_map.load(path, architecture)
    save_file({"weight": np.ones(3, np.float32)}, path)
    with pytest.raises(UserError, match="is no importance map"):
        importance_map.load(path, architecture)


Change = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]


def changed(name: str, value: float | np.ndarray | None) -> Change:
    """One array replaced, one of its numbers replaced, or left out."""

    def change(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if isinstance(value, float):
            tensors[name].flat[3] = value
            return tensors
        others = {key: tensor for key, tensor in tensors.items() if key != name}
        return others if value is None else {**others, name: value}

    return change


BAD_ARRAYS = [
    ("importance.heads", np.nan, "holds nan, but must be in [0, 1]"),
    ("importance.output", 5.0, "holds 5.0, but must be in [0, 1]"),
    ("own.intermediate", -0.5, "holds -0.5, but must be in [0, 1]"),
    ("raw.heads", np.inf, "holds inf, but must be finite and not negative"),
    ("raw.output", -1.0, "holds -1.0"),
    ("halves.output", np.nan, "holds nan"),
    ("importance.heads", np.zeros((3, 2), np.float32), "has shape [3, 2], this model needs [2, 4]"),
    ("halves.heads", np.zeros((2, 4), np.float32), "has shape [2, 4], this model needs [2, 2, 4]"),
    ("own.output", np.zeros((2, 16), np.int8), "holds int8 where float32 belongs"),
    ("raw.intermediate", None, "is missing"),
    ("halves.intermediate", None, "is missing"),
]


@pytest.mark.parametrize(("name", "value", "said"), BAD_ARRAYS)
def test_a_map_that_holds_what_no_map_can(
    stored: Path, architecture: Architecture, name: str, value: float | None, said: str
) -> None:
    with safe_open(stored, framework="numpy") as file:
        metadata = file.metadata()
    save_file(changed(name, value)(load_file(stored)), stored, metadata)
    with pytest.raises(
        UserError, match=re.escape(f"acl.safetensors cannot be used: {name} {said}")
    ):
        importance_map.load(stored, architecture)


def test_a_map_that_does_not_say_whose_it_is(stored: Path, architecture: Architecture) -> None:
    save_file(load_file(stored), stored, {"format": importance_map.FORMAT})
    with pytest.raises(UserError, match="is no importance map"):
        importance_map.load(stored, architecture)


def test_a_directory_in_place_of_a_map(tmp_path: Path, architecture: Architecture) -> None:
    with pytest.raises(UserError, match="is no file; make one with"):
        importance_map.load(tmp_path, architecture)


def test_wider_numbers_are_a_map_too(stored: Path, architecture: Architecture) -> None:
    with safe_open(stored, framework="numpy") as file:
        metadata = file.metadata()
    save_file({k: x.astype(np.float64) for k, x in load_file(stored).items()}, stored, metadata)
    for units in importance_map.load(stored, architecture):
        assert {x.dtype for x in units} == {np.dtype(np.float32)}


def test_what_nobody_knows_is_left_out(tmp_path: Path, architecture: Architecture) -> None:
    units, path = random_units(architecture, 0), tmp_path / "map.safetensors"
    raw = RawImportance(units, None, None, examples=0)
    importance_map.save(path, architecture, raw, units, units)
    assert {name.split(".")[0] for name in load_file(path)} == {"raw", "own", "importance"}
    assert importance_map.load(path, architecture).halves is None


# The published code's arrays


@pytest.fixture
def published(tmp_path: Path, architecture: Architecture) -> Path:
    for kind, values in random_units(architecture, 0)._asdict().items():
        np.save(tmp_path / importance_map.PUBLISHED_FILES[kind], -values.astype(np.float64))
    return tmp_path


def test_published_maps(published: Path, architecture: Architecture) -> None:
    """Their sums are signed (row 2 of the fidelity table); what counts is the size."""
    assert {path.name for path in published.iterdir()} == {
        "head_impt.npy",
        "intermediate_impt.npy",
        "output_impt.npy",
    }
    for actual, expected in zip(
        importance_map.load_published(published, architecture),
        random_units(architecture, 0),
        strict=True,
    ):
        assert actual.dtype == np.float32
        np.testing.assert_array_equal(actual, expected)


def test_one_published_file_is_missing(published: Path, architecture: Architecture) -> None:
    (published / "output_impt.npy").unlink()
    with pytest.raises(UserError, match=r"output_impt\.npy does not exist; all three"):
        importance_map.load_published(published, architecture)


@pytest.mark.parametrize("kind", ["heads", "intermediate", "output"])
def test_published_maps_of_another_shape(
    published: Path, architecture: Architecture, kind: str
) -> None:
    name = importance_map.PUBLISHED_FILES[kind]
    np.save(published / name, np.load(published / name)[:1])
    with pytest.raises(UserError, match=rf"{name} has shape \[1, .*\], this model needs \[2, "):
        importance_map.load_published(published, architecture)


@pytest.mark.parametrize("value", [np.nan, -np.inf, 1e300])
def test_published_numbers_that_are_none(
    published: Path, architecture: Architecture, value: float
) -> None:
    values = np.load(published / "output_impt.npy")
    values[1, 2] = value
    np.save(published / "output_impt.npy", values)
    with pytest.raises(UserError, match=rf"output_impt\.npy holds {re.escape(str(value))}"):
        importance_map.load_published(published, architecture)


def test_no_room_is_made_for_what_a_header_claims(
    published: Path, architecture: Architecture
) -> None:
    file = published / "head_impt.npy"
    file.write_bytes(file.read_bytes().replace(b"(2, 4), }          ", b"(2, 4000000000000)}"))
    with pytest.raises(UserError, match=r"has shape \[2, 4000000000000\]"):
        importance_map.load_published(published, architecture)


class Trap:
    """What a pickle does when it is read."""

    def __reduce__(self) -> tuple:
        return pytest.fail, ("the pickle was executed",)


def test_a_published_file_that_needs_pickle(published: Path, architecture: Architecture) -> None:
    np.save(published / "head_impt.npy", np.array([Trap()], object), allow_pickle=True)
    with pytest.raises(UserError, match=r"head_impt\.npy is not a plain array of numbers"):
        importance_map.load_published(published, architecture)


def test_a_published_file_that_is_no_array(published: Path, architecture: Architecture) -> None:
    for content in (b"", b"\x93NUMPY", b"not numpy at all", b"PK\x03\x04"):
        (published / "head_impt.npy").write_bytes(content)
        with pytest.raises(UserError, match=r"head_impt\.npy is not a plain array of numbers"):
            importance_map.load_published(published, architecture)


def test_a_published_archive_or_text(published: Path, architecture: Architecture) -> None:
    np.savez(published / "archive.npz", x=np.ones(3))
    (published / "archive.npz").rename(published / "head_impt.npy")
    with pytest.raises(UserError, match="is not a plain array of numbers"):
        importance_map.load_published(published, architecture)
    np.save(published / "head_impt.npy", np.full((2, 4), "text"))
    with pytest.raises(UserError, match="is not a plain array of numbers"):
        importance_map.load_published(published, architecture)
