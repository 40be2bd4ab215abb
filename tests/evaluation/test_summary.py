"""What hand-made run directories amount to."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from das_jax.errors import UserError
from das_jax.evaluation.comparison import summarise_all
from das_jax.evaluation.statistics import Estimate, estimate
from das_jax.evaluation.summary import Summary, summarise
from das_jax.training.run_directory import RunDirectory
from tests.evaluation.conftest import EVALUATION, HELDOUT, ROWS, MakeRun, end_task


def test_held_out_losses_and_their_measures(make_run: MakeRun) -> None:
    table = summarise(make_run("das")).tables["heldout"]
    assert table.title == "held-out loss, nats per masked token (less is better)"
    assert (table.rows, table.columns, table.domains) == (
        ROWS,
        ("news", "acl", "reviews"),
        (0, 1, 2),
    )
    assert (table.samples, table.seeds) == ("pre-training", (0,))
    assert table.rows[table.start] == "news", "the model after the warm-up, not the base model"
    measures = {name: value.item() for name, value in table.measures().items()}
    assert measures == pytest.approx(
        {
            "OP": (3.25 + 2.0) / 2,
            "F": 3.25 - 3.0,
            "forgetting rate": 3.25 - 3.0,
            "BWT": 3.0 - 3.25,
            "FWT": 5.5 - 5.5001,
            "plasticity": ((5.0 - 3.0) + (5.5001 - 2.0)) / 2,
            "X-Delta": 4.0 - 4.25,
        }
    )


def test_without_a_warm_up_the_first_row_counted_is_the_base_model(make_run: MakeRun) -> None:
    heldout = {row: losses for row, losses in HELDOUT.items() if row != "news"}
    general = {"name": "news", "source": {"kind": "demo", "name": "news"}, "steps": 0}
    table = summarise(make_run("das", heldout=heldout, general=general)).tables["heldout"]
    assert not table.warmed_up
    assert table.measures()["X-Delta"] == pytest.approx(8.0 - 4.25)
    assert [table.learned(row, 1) for row in range(3)] == [False, True, False]
    assert not any(table.learned(row, 0) for row in range(3)), "news is measured, never learned"


def test_what_a_cell_says(make_run: MakeRun) -> None:
    table = summarise(make_run("das")).tables["heldout"]
    learned = [[table.learned(r, c) for c in range(3)] for r in range(4)]
    assert learned == np.eye(4, 3, -1).astype(bool).tolist()
    assert table.change(1, 0) is None, "the row that the changes are taken to"
    assert table.change(2, 0) == (0.5, None, None, 1)
    assert table.verdict(2, 0) == "worse", "a loss that rises"
    assert table.verdict(3, 1) == "better"
    assert table.verdict(2, 2) == "", "three digits do not show it"


def test_end_tasks_of_one_run_are_sampled_by_fine_tuning_seeds(make_run: MakeRun) -> None:
    table = summarise(make_run("das", evaluation=EVALUATION)).tables["tasks"]
    assert (table.samples, table.seeds, table.unit) == ("fine-tuning", (0, 1, 2), "accuracy")
    assert table.baselines == {"majority": [0.25, 0.25], "TF-IDF": [0.375, 0.375]}
    np.testing.assert_allclose(table.measures()["F"], [0.1, 0.15, 0.2])
    np.testing.assert_allclose(table.measures()["OP"], 0.75)
    assert table.note().endswith("All are of one pre-training seed; they say nothing of another.")


def test_end_tasks_of_several_runs_are_sampled_by_pre_training_seeds(make_run: MakeRun) -> None:
    for seed in (0, 2):
        evaluation = copy.deepcopy(EVALUATION)
        scores = evaluation["tasks"]["intent"]["rows"]["reviews"]["scores"]
        scores["accuracy"] = [0.6 - seed / 10] * 3
        make_run(f"das/seed-{seed}", seed=seed, evaluation=evaluation)
        run = make_run(f"one/seed-{seed}", seed=seed, evaluation=evaluation)
    table = summarise(run.parents[1] / "das").tables["tasks"]
    assert (table.samples, table.seeds) == ("pre-training", (0, 2))
    np.testing.assert_allclose(table.measures()["F"], [0.75 - 0.6, 0.75 - 0.4])
    assert table.note().endswith("Each of them is a mean over fine-tuning seeds.")


def test_fine_tuning_seeds_that_not_all_rows_have_are_left_out(make_run: MakeRun) -> None:
    evaluation = copy.deepcopy(EVALUATION)
    row = evaluation["tasks"]["stars"]["rows"]["acl"]
    row["seeds"], row["scores"]["accuracy"] = [2, 1], [0.3, 0.2]
    table = summarise(make_run("das", evaluation=evaluation)).tables["tasks"]
    assert table.seeds == (1, 2)
    np.testing.assert_allclose(table.values_NxRxC[:, 2, 1], [0.2, 0.3])
    row["seeds"] = [7, 8]
    with pytest.raises(UserError, match=r"no fine-tuning seed in common; .* das-jax evaluate"):
        summarise(make_run("other", evaluation=evaluation))


def test_a_task_that_was_not_measured_in_every_row_counts_in_no_measure(make_run: MakeRun) -> None:
    evaluation = copy.deepcopy(EVALUATION)
    del evaluation["tasks"]["intent"]["rows"]["acl"]
    # Before the warm-up nothing needs to be known.
    del evaluation["tasks"]["stars"]["rows"]["base model"]
    table = summarise(make_run("das", evaluation=evaluation)).tables["tasks"]
    assert table.incomplete() == ("intent",)
    assert table.cell(2, 0) is None
    np.testing.assert_allclose(table.measures()["OP"], 0.9)


def test_metrics_of_several_names_and_baselines_that_only_some_tasks_have(
    make_run: MakeRun,
) -> None:
    evaluation: dict[str, Any] = copy.deepcopy(EVALUATION)
    stars = evaluation["tasks"]["stars"]
    stars["metric"], stars["baselines"] = "macro_f1", {}
    for row in stars["rows"].values():
        row["scores"]["macro_f1"] = [score / 2 for score in row["scores"]["accuracy"]]
    table = summarise(make_run("das", evaluation=evaluation)).tables["tasks"]
    assert table.unit == "accuracy, macro-F1"
    assert table.baselines["majority"] == pytest.approx([0.25, np.nan], nan_ok=True)
    np.testing.assert_allclose(table.values_NxRxC[:, 3, 1], 0.45)


def test_minimal_pairs_are_general_knowledge(make_run: MakeRun) -> None:
    scores = dict(zip(ROWS, (0.5, 0.75, 0.5, 0.625), strict=True))
    rows = {row: {"weights": row, "scores": {"accuracy": x}} for row, x in scores.items()}
    pairs = {"key": "k", "domain": None, "metric": "accuracy", "questions": 8, "rows": rows}
    evaluation = {**EVALUATION, "minimal_pairs": {"blimp": pairs}}
    summary = summarise(make_run("das", evaluation=evaluation))
    table = summary.tables["minimal_pairs"]
    assert table.title == "minimal pairs, accuracy (more is better)"
    np.testing.assert_allclose(table.values_NxRxC, np.reshape([0.5, 0.75, 0.5, 0.625], (1, 4, 1)))
    assert list(summary.measures("minimal_pairs")) == ["X-Delta"]
    assert summary.measures("minimal_pairs")["X-Delta"].mean == 0.625 - 0.75, "after the warm-up"
    assert "minimal_pairs" not in summarise(make_run("b", evaluation=EVALUATION)).tables
    with pytest.raises(UserError, match="the minimal pairs differ"):
        summarise_all([make_run("c", evaluation=evaluation), make_run("d", evaluation=EVALUATION)])


def test_facts_of_a_domain_are_no_general_knowledge(make_run: MakeRun) -> None:
    summary = summarise(make_run("das", evaluation=EVALUATION))
    measures = summary.measures("cloze")
    assert list(measures) == ["X-Delta", "FUAR"]
    assert measures["X-Delta"].mean == pytest.approx(0.3 - 0.5), "of the kept facts alone"
    assert measures["FUAR"].mean == pytest.approx(0.2 / (0.2 + 0.2))


@pytest.mark.parametrize(
    ("difference", "shade"), [(0.001, 1), (-0.1, 1), (0.101, 2), (-0.4, 4), (0.41, 5), (9.0, 5)]
)
def test_with_one_seed_the_shade_is_of_a_scale_that_is_always_the_same(
    make_run: MakeRun, difference: float, shade: int
) -> None:
    table = summarise(make_run("das")).tables["heldout"]
    assert table.shade(estimate([difference])) == shade
    assert table.shade(estimate([difference] * 3)) == shade, "nothing tells the noise either"


@pytest.mark.parametrize(("times", "shade"), [(1.01, 1), (1.99, 1), (2.01, 2), (5.5, 5), (80.0, 5)])
def test_with_several_the_shade_is_how_often_a_difference_is_its_noise(
    make_run: MakeRun, times: float, shade: int
) -> None:
    table = summarise(make_run("das")).tables["heldout"]
    for noise in (0.001, 1.0):
        mean = noise * times
        assert table.shade(Estimate(mean, mean - noise, mean + noise, 3)) == shade


def test_cost_is_that_of_one_seed(make_run: MakeRun) -> None:
    for seed in (0, 1):
        run = make_run(f"das/seed-{seed}", seed=seed)
    cost = summarise(run.parent).cost
    # Three stages of four steps, half a second each.
    assert (cost.seconds, cost.tokens, cost.flops) == (6.0, 600.0, 6000.0)


def test_a_run_in_its_middle(make_run: MakeRun) -> None:
    heldout = {row: HELDOUT[row] for row in ("base model", "news")}
    table = summarise(make_run("das", heldout=heldout)).tables["heldout"]
    assert table.measures() == {}, "nothing is learned yet"


class TestSeeds:
    """A directory with a run per seed."""

    @pytest.fixture
    def seeds(self, make_run: MakeRun) -> Path:
        for seed in (0, 2, 10):
            heldout = copy.deepcopy(HELDOUT)
            heldout["reviews"]["acl"] += seed / 100
            run = make_run(f"das/seed-{seed}", seed=seed, heldout=heldout)
        return run.parent

    def test_they_are_one_run_with_intervals(self, seeds: Path) -> None:
        summary = summarise(seeds)
        assert isinstance(summary, Summary)
        assert (summary.name, summary.seeds) == ("das", (0, 2, 10))
        table = summary.tables["heldout"]
        np.testing.assert_allclose(table.values_NxRxC[:, 3, 1], [3.25, 3.27, 3.35])
        cell = table.cell(3, 1)
        assert cell is not None
        assert cell.mean == pytest.approx(3.29)
        assert cell.half_width == pytest.approx(0.13145, rel=1e-3)  # 4.3027 * 0.05292 / sqrt(3)

    def test_changes_are_paired_and_count_if_zero_is_not_in_their_interval(
        self, make_run: MakeRun
    ) -> None:
        for seed in (0, 1, 2):
            heldout = copy.deepcopy(HELDOUT)
            for row in ("news", "acl", "reviews"):
                for text in heldout[row]:
                    heldout[row][text] += seed  # What a seed does to all of its models.
            heldout["acl"]["reviews"] += (0.002, 0.022, -0.018)[seed]
            heldout["reviews"]["acl"] += (0.0, 0.1, -0.1)[seed]
            run = make_run(f"das/seed-{seed}", seed=seed, heldout=heldout)
        table = summarise(run.parent).tables["heldout"]
        change = table.change(2, 2)
        assert change is not None
        assert change.mean == pytest.approx(0.0021)
        assert change.half_width == pytest.approx(4.30265 * 0.02 / np.sqrt(3), rel=1e-4)
        assert table.verdict(2, 2) == "unclear", "+.002 +- .050"
        change = table.change(3, 1)
        assert change is not None
        assert change.half_width == pytest.approx(4.30265 * 0.1 / np.sqrt(3), rel=1e-4)
        assert table.verdict(3, 1) == "better", "-1.75 +- .25, though seeds differ by 1"
        assert table.shade(change) == 5, "1.75 is more than five times .25"

    def test_the_base_model_is_of_no_seed(self, seeds: Path) -> None:
        table = summarise(seeds).tables["heldout"]
        assert [table.cell(0, column) for column in range(3)] == [
            (8.0, None, None, 1),
            (9.0, None, None, 1),
            (8.5, None, None, 1),
        ]

    def test_another_configuration_is_not_another_seed(
        self, seeds: Path, make_run: MakeRun
    ) -> None:
        make_run("das/seed-3", seed=3, training={"learning_rate": 1.0})
        with pytest.raises(
            UserError, match=r"seed-3 and .*seed-0 are not .*: training.learning_rate"
        ):
            summarise(seeds)

    def test_one_that_is_not_as_far(self, seeds: Path, make_run: MakeRun) -> None:
        heldout = {row: losses for row, losses in HELDOUT.items() if row != "reviews"}
        make_run("das/seed-3", seed=3, heldout=heldout)
        with pytest.raises(UserError, match="are not equally far, or not measured on the same"):
            summarise(seeds)

    def test_one_that_was_measured_on_other_tasks(self, seeds: Path) -> None:
        for seed, key in ((0, "k"), (2, "k"), (10, "another")):
            evaluation = {"tasks": {"t": end_task("acl", *[[0.5]] * 4, key=key)}, "cloze": {}}
            path = RunDirectory(seeds / f"seed-{seed}").evaluation
            path.write_text(json.dumps(evaluation))
        with pytest.raises(UserError, match="not measured on the same"):
            summarise(seeds)

    def test_the_same_seed_twice_is_no_second_sample(self, seeds: Path) -> None:
        shutil.copytree(seeds / "seed-0", seeds / "seed-1")
        with pytest.raises(UserError, match="have the same seed"):
            summarise(seeds)


def test_a_run_without_checkpoints(make_run: MakeRun) -> None:
    run = make_run("das")
    (run / "scores.json").unlink()
    with pytest.raises(UserError, match="das has no checkpoints yet; run das-jax pretrain first"):
        summarise(run)


def test_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no run of das-jax"):
        summarise(tmp_path)
