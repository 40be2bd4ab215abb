"""The report as CSV files, read back."""

import csv
from pathlib import Path

import pytest

from das_jax.evaluation.comparison import summarise_all
from das_jax.evaluation.csv_files import write_csv_files
from tests.evaluation.conftest import EVALUATION, MakeRun

Rows = list[dict[str, str]]


@pytest.fixture
def files(make_run: MakeRun, tmp_path: Path) -> dict[str, Rows]:
    runs = (
        make_run("das, no. 1", evaluation=EVALUATION),
        make_run("naive", method="naive", seed=1, evaluation=EVALUATION),
    )
    write_csv_files(summarise_all(runs), tmp_path)
    return {
        path.stem: list(csv.DictReader(path.read_text().splitlines(), strict=True))
        for path in tmp_path.glob("*.csv")
    }


def test_every_sample_of_every_cell(files: dict[str, Rows]) -> None:
    rows = [row for row in files["scores"] if (row["run"], row["column"]) == ("naive", "intent")]
    acl = [row for row in rows if row["row"] == "acl"]
    assert [(row["seed"], row["value"]) for row in acl] == [
        ("0", "0.7"),
        ("1", "0.75"),
        ("2", "0.8"),
    ]
    assert {row["samples"] for row in acl} == {"fine-tuning"}
    assert [(row["row"], row["seed"], row["value"]) for row in rows[-2:]] == [
        ("majority", "", "0.25"),
        ("TF-IDF", "", "0.375"),
    ]
    assert {row["kind"] for row in files["scores"]} == {"tasks", "heldout", "cloze"}


def test_measures_have_intervals_where_there_are_some(files: dict[str, Rows]) -> None:
    rows = {(row["run"], row["kind"], row["measure"]): row for row in files["measures"]}
    row = rows["naive", "tasks", "F"]
    assert float(row["mean"]) == pytest.approx(0.15)
    assert float(row["low"]) < 0.15 < float(row["high"])
    row = rows["das, no. 1", "heldout", "F"]
    assert (row["number"], float(row["mean"]), row["low"], row["high"]) == ("1", 0.25, "", "")
    assert float(rows["naive", "cloze", "FUAR"]["mean"]) == pytest.approx(0.5)


def test_ranks_without_pairs_have_no_difference(files: dict[str, Rows]) -> None:
    ranked = [("tasks", "OP"), ("heldout", "OP"), ("heldout", "X-Delta"), ("cloze", "X-Delta")]
    ranked += [("tasks", "F"), ("heldout", "F"), ("cloze", "FUAR")]
    assert [(row["kind"], row["measure"], row["rank"]) for row in files["ranks"]] == [
        (*each, place) for each in ranked for place in "12"
    ]
    assert {row["difference"] for row in files["ranks"]} == {""}, "the seeds are not the same"
    assert {row["shown"] for row in files["ranks"]} == {"", "nothing: other seeds"}
    assert [(row["samples"], row["number"]) for row in files["ranks"]][1:3] == [
        ("fine-tuning", "3"),
        ("pre-training", "1"),
    ]


def test_metrics_importance_and_cost(files: dict[str, Rows]) -> None:
    losses = [row for row in files["metrics"] if row["metric"] == "masked_lm"]
    assert [(row["run"], row["seed"], row["stage"], row["step"]) for row in losses[5:7]] == [
        ("das, no. 1", "0", "reviews", "12"),
        ("naive", "1", "news", "2"),
    ]
    assert {row["run"] for row in files["importance"]} == {"das, no. 1"}
    assert len(files["importance"]) == 3 * 3 * 2, "a row per map, kind and layer"
    assert {row["free"] for row in files["importance"]} == {"0.25"}
    assert len(files["agreement"]) == 2 * 3 * 3
    assert [row["seconds"] for row in files["costs"]] == ["6.0", "6.0"]
    assert [row["relative_flops"] for row in files["costs"]] == ["1.0", "1.0"]
