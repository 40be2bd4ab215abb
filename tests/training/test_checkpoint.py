"""Checkpoints are whole or not used."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from das_jax.errors import UserError
from das_jax.training import checkpoint
from das_jax.training.checkpoint import Checkpoints, DamagedError, fingerprints
from das_jax.training.sharding import make_sharding


def state_of(value: float) -> dict[str, Any]:
    return {
        "params": {"a": jnp.full((3, 4), value, jnp.float32), "b": jnp.arange(5.0) + value},
        "step": jnp.int32(value),
        "memory": (),
    }


SHAPES = jax.eval_shape(lambda: state_of(0.0))


def like(info: dict[str, Any]) -> Any:
    return SHAPES


def open_checkpoints(directory: Path, log: Any = print, **options: Any) -> Checkpoints:
    return Checkpoints(directory / "checkpoints", make_sharding(1), log, **options)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Checkpoints 1 and 2 of a state that holds the step everywhere."""
    with open_checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state_of(step), {"phase": "training"})
    return tmp_path


def assert_equal(actual: Any, expected: Any) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, e)


def test_the_newest_comes_back_on_any_mesh(saved: Path) -> None:
    sharding = make_sharding(8)
    with Checkpoints(saved / "checkpoints", sharding, print) as checkpoints:
        restored = checkpoints.restore_latest(like)
    assert restored is not None
    assert (restored.step, restored.info["phase"]) == (2, "training")
    assert_equal(restored.state, state_of(2))
    assert restored.state["params"]["a"].sharding == sharding.replicated


def test_what_is_split_is_saved_and_comes_back_split_otherwise(tmp_path: Path) -> None:
    w = np.arange(2.0**15, dtype=np.float32).reshape(8, -1)
    shapes = {"params": {"w": jax.ShapeDtypeStruct(w.shape, w.dtype)}}
    sharding = make_sharding(8, "parameters")
    with Checkpoints(tmp_path / "checkpoints", sharding, print) as checkpoints:
        checkpoints.save(1, {"params": sharding.put("params", {"w": w})}, {})
    for devices, state, parameters in (
        (2, "parameters", "all"),
        (4, "replicated", "all"),
        (8, "parameters", 2),
    ):
        sharding = make_sharding(devices, state, parameters=parameters)
        like = {"params": sharding.shapes("params", shapes["params"])}
        with Checkpoints(tmp_path / "checkpoints", sharding, print) as checkpoints:
            restored = checkpoints.restore(1, lambda info: like).state["params"]["w"]  # noqa: B023
        assert restored.sharding == like["params"]["w"].sharding
        np.testing.assert_array_equal(restored, w)


def test_a_part_of_a_state_can_be_read_alone(saved: Path) -> None:
    with open_checkpoints(saved, read_only=True) as checkpoints:
        restored = checkpoints.restore(1, lambda info: {"params": SHAPES["params"]})
    assert_equal(restored.state, {"params": state_of(1)["params"]})


def test_two_are_kept(saved: Path) -> None:
    with open_checkpoints(saved) as checkpoints:
        checkpoints.save(5, state_of(5), {})
        checkpoints.wait()
        assert checkpoints.steps() == [2, 5]


def test_nothing_saved_is_nothing_restored(tmp_path: Path) -> None:
    with open_checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore_latest(like) is None


def test_the_step_may_reuse_the_memory_of_what_is_being_saved(tmp_path: Path) -> None:
    """The save runs in the background, while the next steps write where the state was."""
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = make_sharding(1).replicate(jnp.zeros(1 << 20))
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"x": x}, {})
        for _ in range(20):
            x = step(x)
    shapes = {"x": jax.ShapeDtypeStruct((1 << 20,), jnp.float32)}
    with open_checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(1, lambda info: shapes)
    np.testing.assert_array_equal(restored.state["x"], np.zeros(1 << 20))


def test_bytes_that_changed_and_still_parse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state_of(1), {})
        # What a disk does: the array is another than the one whose fingerprint was taken.
        as_it_was = fingerprints(state_of(2))
        monkeypatch.setattr(checkpoint, "fingerprints", lambda state: as_it_was)
        changed = state_of(2)
        changed["params"]["b"] = changed["params"]["b"].at[3].add(1e-6)
        checkpoints.save(2, changed, {})
    monkeypatch.undo()
    said: list[str] = []
    with open_checkpoints(tmp_path, said.append, read_only=True) as checkpoints:
        with pytest.raises(DamagedError, match=r"2 is damaged \(params/b is not what was saved\)"):
            checkpoints.restore(2, like)
        restored = checkpoints.restore_latest(like)
        assert restored is not None
        assert restored.step == 1
    assert len(said) == 1
    assert (tmp_path / "checkpoints" / "2").is_dir(), "who only reads moves nothing"

    with open_checkpoints(tmp_path, said.append) as checkpoints:
        restored = checkpoints.restore_latest(like)
        assert restored is not None
        assert restored.step == 1
    with open_checkpoints(tmp_path, said.append) as checkpoints:
        assert checkpoints.steps() == [1]
        checkpoints.save(2, state_of(2), {})
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"1", "2", "2.damaged"}


@pytest.mark.parametrize("kept", ["state", "info"])
def test_a_checkpoint_half_of_which_is_gone(saved: Path, kept: str) -> None:
    for path in sorted((saved / "checkpoints" / "2").rglob("*"), reverse=True):
        if path.is_file() and kept not in path.relative_to(saved).parts:
            path.unlink()
    with open_checkpoints(saved) as checkpoints:
        restored = checkpoints.restore_latest(like)
    assert restored is not None
    assert restored.step == 1
    assert_equal(restored.state, state_of(1))


@settings(max_examples=25)
@given(
    dtype=st.sampled_from(["float32", "bfloat16", "int32", "uint32", "bool", "uint8"]),
    size=st.sampled_from([1, 7, 96]),
    data=st.data(),
)
def test_any_changed_element_changes_the_fingerprint(dtype: str, size: int, data: Any) -> None:
    array = jnp.asarray(np.arange(size) % 2 if dtype == "bool" else np.arange(size), dtype)
    place = data.draw(st.integers(0, size - 1))
    if dtype == "bool":
        changed = array.at[place].set(~array[place])
    else:
        # One bit, of any weight.
        width = 8 * array.dtype.itemsize
        bits = jax.lax.bitcast_convert_type(array, f"uint{width}")
        flipped = bits[place] ^ jnp.asarray(1 << data.draw(st.integers(0, width - 1)), bits.dtype)
        changed = jax.lax.bitcast_convert_type(bits.at[place].set(flipped), array.dtype)
    assert fingerprints({"x": array}) != fingerprints({"x": changed})


def test_a_fingerprint_sees_order_and_does_not_see_the_mesh() -> None:
    x = jnp.arange(64.0).reshape(8, 8)
    assert fingerprints({"x": x}) != fingerprints({"x": x.T})
    assert fingerprints({"x": x}) != fingerprints({"x": x[::-1]})
    whole = fingerprints({"x": x})
    for devices in (1, 2, 8):
        sharding = make_sharding(devices)
        assert fingerprints({"x": jax.device_put(x, sharding.by_example)}) == whole
        columns = NamedSharding(sharding.mesh, PartitionSpec(None, "data"))
        assert fingerprints({"x": jax.device_put(x, columns)}) == whole
        assert fingerprints({"x": sharding.replicate(x)}) == whole


def test_fingerprints_of_64_bits() -> None:
    with jax.enable_x64(True):
        x = jnp.arange(6.0)
        assert x.dtype == jnp.float64
        changed = x.at[2].set(jnp.nextafter(x[2], jnp.inf))
        assert fingerprints({"x": x}) != fingerprints({"x": changed})


@pytest.mark.parametrize("kind", ["cut", "deleted"])
def test_a_damaged_checkpoint_is_said_in_one_sentence(
    saved: Path, kind: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """TensorStore's threads finish their work late, after the one that failed, and used to print that."""
    printed: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda each: printed.append(str(each.exc_value)))
    for path in (saved / "checkpoints" / "2" / "state").rglob("*"):
        if path.is_file() and (path.parent.name == "d" or path.name == "manifest.ocdbt"):
            path.write_bytes(path.read_bytes()[:20]) if kind == "cut" else path.unlink()
    said: list[str] = []
    with open_checkpoints(saved, said.append) as checkpoints:
        restored = checkpoints.restore_latest(like)
    assert restored is not None
    assert restored.step == 1
    assert len(said) == 1
    assert (printed, capfd.readouterr().err) == ([], "")
    sys.unraisablehook(SimpleNamespace(exc_value=ValueError("another")))  # type: ignore[arg-type]
    assert printed == ["another"], "nothing else is kept back"


@pytest.mark.parametrize("earlier", ["without shapes", "with other names"])
def test_an_earlier_versions_checkpoint_is_not_taken_for_damaged(
    earlier: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is left where it is: the version that wrote it can go on from it."""
    write, state = ocp.args.JsonSave, state_of(1)
    if earlier == "with other names":
        state["params"]["c"] = state["params"].pop("a")
    else:
        monkeypatch.setattr(
            ocp.args, "JsonSave", lambda info: write({k: info[k] for k in info if k != "shapes"})
        )
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {"phase": "training"})
    with (
        open_checkpoints(tmp_path) as checkpoints,
        pytest.raises(UserError, match="was written by an earlier version of das_jax"),
    ):
        checkpoints.restore_latest(like)
    assert (tmp_path / "checkpoints" / "1").is_dir()
