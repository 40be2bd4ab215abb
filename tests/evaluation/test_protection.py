"""What maps have in common, and what they leave free."""

import numpy as np
import pytest

from das_jax.evaluation.protection import GENERAL, protection_of, top_overlap
from das_jax.evaluation.scores import read_scores
from das_jax.methods.das import importance_map
from das_jax.methods.das.importance import RawImportance
from das_jax.model.huggingface_config import architecture_of
from das_jax.model.units import Units, unit_shapes
from das_jax.training.run_directory import RunDirectory
from tests.evaluation.conftest import HELDOUT, MakeRun


def test_the_overlap_of_the_most_important_tenth() -> None:
    first = np.array([[*range(20)], [*range(20)]], np.float32)
    second = first.copy()
    # Layer 0 shares one of its two; layer 1 none.
    second[0, 18], second[1, [0, 1]] = 0, 100
    assert top_overlap(first, first) == 1.0
    assert top_overlap(first, second) == 0.25


def test_unrelated_maps_share_what_chance_gives() -> None:
    generator = np.random.default_rng(0)
    first, second = generator.uniform(size=(2, 50, 400))
    assert top_overlap(first, second) == pytest.approx(0.1, abs=0.02)


def test_maps_of_a_run_in_order(make_run: MakeRun) -> None:
    run = read_scores(make_run("das"))
    protection = protection_of((run,))
    assert protection is not None
    assert protection.maps == (GENERAL, "acl", "reviews")
    assert protection.units == {"heads": 2, "intermediate": 20, "output": 16}
    assert protection.layers == 2
    assert set(protection.agreement) == {"intermediate", "output"}, "two heads cannot be ranked"
    for agreement in protection.agreement.values():
        # The halves rank the units alike, random maps do not.
        np.testing.assert_allclose(np.diag(agreement.correlation_MxM), 1)
        np.testing.assert_allclose(np.diag(agreement.overlap_MxM), 1)
        others = agreement.correlation_MxM[~np.eye(3, dtype=bool)]
        assert np.abs(others).max() < 0.6
        np.testing.assert_array_equal(agreement.correlation_MxM, agreement.correlation_MxM.T)
    assert protection.agreement["intermediate"].chance == 0.1
    np.testing.assert_allclose(protection.free_MxL["output"], 0.25)


def test_what_is_free_is_the_mean_over_seeds(make_run: MakeRun) -> None:
    runs = [read_scores(make_run(f"das/seed-{seed}", seed=seed)) for seed in (0, 1)]
    architecture = architecture_of(runs[0].directory / "base")
    shapes = unit_shapes(architecture)
    raw = Units(**{kind: np.ones(shape) for kind, shape in shapes.items()})  # type: ignore[arg-type]
    halves = Units(*(np.stack([one, one]) for one in raw))  # type: ignore[arg-type]
    for run, importance in zip(runs, (0.0, 0.5), strict=True):
        units = Units(*(importance * one for one in raw))
        path = run.directory / "02-reviews" / "importance.safetensors"
        importance_map.save(path, architecture, RawImportance(raw, raw, halves, 8), raw, units)
    protection = protection_of(tuple(runs))
    assert protection is not None
    assert protection.seeds == 2
    np.testing.assert_allclose(protection.free_MxL["heads"][2], [0.75, 0.75])
    assert protection.agreement["output"].correlation_MxM[2, 2] == 0, "a map without variation"


def test_a_stage_that_is_not_finished_has_no_map_yet(make_run: MakeRun) -> None:
    run = make_run("das")
    scores = {row: HELDOUT[row] for row in ("base model", "news", "acl")}
    RunDirectory(run).write_scores(scores, None, "nats per masked token")
    protection = protection_of((read_scores(run),))
    assert protection is not None
    assert protection.maps == (GENERAL, "acl")


def test_a_method_that_protects_nothing(make_run: MakeRun) -> None:
    assert protection_of((read_scores(make_run("naive", method="naive")),)) is None
