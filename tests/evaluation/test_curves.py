"""Metrics of a run along one axis."""

from pathlib import Path

import numpy as np

from das_jax.evaluation.curves import over_seeds, read_records, series, starts
from tests.evaluation.conftest import MakeRun


def test_stages_follow_each_other(make_run: MakeRun) -> None:
    records = read_records(make_run("das"))
    assert starts(records) == {"news": 0, "acl": 4, "reviews": 8}
    steps, values = series(records, "masked_lm")
    np.testing.assert_array_equal(steps, [2, 4, 6, 8, 10, 12])
    np.testing.assert_allclose(values, [4.8, 4.6] * 3)
    assert [record.steps for record in records] == [2] * 6
    steps, _ = series(records, "effective_mask/heads")
    np.testing.assert_array_equal(steps, [6, 8, 10, 12], "not of the warm-up")


def test_a_line_that_was_cut_short_and_a_stage_that_has_not_begun(tmp_path: Path) -> None:
    for name, text in (("01-a", '{"step": 3, "loss": 1.0}\n{"step": 6, "lo'), ("02-b", None)):
        (tmp_path / name).mkdir()
        if text is not None:
            (tmp_path / name / "metrics.jsonl").write_text(text)
    records = read_records(tmp_path)
    assert [(record.stage, record.step) for record in records] == [("a", 3)]
    steps, values = series(records, "absent")
    assert steps.size == values.size == 0


def test_seeds_are_compared_where_all_were_logged(make_run: MakeRun) -> None:
    runs = [make_run(f"das/seed-{seed}", seed=seed) for seed in (0, 1)]
    path = runs[1] / "02-reviews" / "metrics.jsonl"
    path.write_text(path.read_text().splitlines()[1] + "\n")
    steps, values = over_seeds([read_records(run) for run in runs], "masked_lm")
    np.testing.assert_array_equal(steps, [2, 4, 6, 8, 12])
    np.testing.assert_allclose(values[1] - values[0], 1)
