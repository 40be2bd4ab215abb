"""Runs beside each other."""

import copy
from pathlib import Path
from typing import Any

import pytest

from das_jax.errors import UserError
from das_jax.evaluation.comparison import difference, rank, rankings, summarise_all
from tests.evaluation.conftest import EVALUATION, HELDOUT, MakeRun


def write_seeds(make_run: MakeRun, name: str, forgotten: list[float], **how: Any) -> Path:
    """A run with a seed for each, which forgets so much of acl."""
    for seed, more in enumerate(forgotten):
        heldout = copy.deepcopy(HELDOUT)
        # The first model differs by seed, too, which pairs take away.
        for row in ("acl", "reviews"):
            heldout[row]["acl"] += seed
        heldout["reviews"]["acl"] += more
        run = make_run(f"{name}/seed-{seed}", seed=seed, heldout=heldout, **how)
    return run.parent


def test_ranks_and_paired_differences(make_run: MakeRun) -> None:
    paths = [
        write_seeds(make_run, "das", [0.1, 0.2, 0.3]),
        write_seeds(make_run, "naive", [0.5, 0.7, 0.6], method="naive"),
        write_seeds(make_run, "better", [0.0, 0.0, 0.0]),
    ]
    summaries = summarise_all(paths)
    ranked = rank(summaries, "heldout", "F")
    assert [each.summary.name for each in ranked] == ["better", "das", "naive"], "the least first"
    assert [each.value.mean for each in ranked] == pytest.approx([0.25, 0.45, 0.85])
    assert ranked[1].difference is None, "the run that the others are compared with"
    assert ranked[2].difference is not None
    assert ranked[2].difference == pytest.approx((0.4, 0.3, 0.5, 3))
    assert rankings(summaries) == [("heldout", "OP"), ("heldout", "F")]


def test_end_tasks_rank_where_there_are_some(make_run: MakeRun) -> None:
    worse = copy.deepcopy(EVALUATION)
    worse["tasks"]["intent"]["rows"]["reviews"]["scores"]["accuracy"] = [0.1, 0.1, 0.1]
    paths = make_run("das", evaluation=worse), make_run("naive", evaluation=EVALUATION)
    summaries = summarise_all(paths)
    assert rankings(summaries) == [("tasks", "OP"), ("heldout", "F")]
    ranked = rank(summaries, "tasks", "OP")
    assert [each.summary.name for each in ranked] == ["naive", "das"], "the most first"
    assert ranked[0].difference == pytest.approx((0.25, 0.25, 0.25, 3))


def test_seeds_that_do_not_pair(make_run: MakeRun) -> None:
    das, naive = write_seeds(make_run, "das", [0.1, 0.2]), write_seeds(make_run, "naive", [0.5])
    one, two = summarise_all([das, naive])
    assert difference(two, one, "heldout", "F") is None


def test_fine_tuning_seeds_pair_only_on_models_of_the_same_seed(make_run: MakeRun) -> None:
    one, two, three = summarise_all(
        [make_run(name, seed=seed, evaluation=EVALUATION) for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    )  # fmt: skip
    assert difference(two, one, "tasks", "OP") == pytest.approx((0, 0, 0, 3))
    assert difference(three, one, "tasks", "OP") is None


def another_key(evaluation: dict[str, Any]) -> dict[str, Any]:
    changed = copy.deepcopy(evaluation)
    changed["tasks"]["stars"]["key"] = "another"
    return changed


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (
            {"inputs": {"the text of news": "n", "the text of acl": "x", "the model demo:bert-tiny": "m"}},
            "the models or the texts differ (the text of acl); train both on the same",
        ),
        (
            {"evaluation": another_key(EVALUATION)},
            "the end tasks differ (stars); measure both on the same with das-jax evaluate",
        ),
        ({"evaluation": {**EVALUATION, "cloze": {}}}, "the cloze facts differ (capitals, ministers, "),
        (
            {"heldout": {row: HELDOUT[row] for row in ("base model", "news", "acl")}},
            "the domains learned so far differ (reviews); finish both with das-jax pretrain",
        ),
        ({"training": {"mask_rate": 0.3}}, "the held-out loss differ (training.mask_rate)"),
    ],
)  # fmt: skip
def test_runs_that_are_not_comparable(make_run: MakeRun, how: dict[str, Any], said: str) -> None:
    paths = (
        make_run("das", evaluation=EVALUATION),
        make_run("b", **{"evaluation": EVALUATION, **how}),
    )
    with pytest.raises(UserError) as raised:
        summarise_all(paths)
    assert str(raised.value).startswith("das and b cannot be compared: ")
    assert said in str(raised.value)


def test_runs_that_differ_in_what_is_compared(make_run: MakeRun) -> None:
    """The same model, found elsewhere, and another method."""
    inputs = {"the text of news": "n", "the text of acl": "a", "the model /models/tiny": "m"}
    other = make_run("b", method="naive", inputs=inputs, model={"path": "/models/tiny"})
    assert len(summarise_all([make_run("a"), other])) == 2


def test_directories_of_the_same_name_are_told_apart(make_run: MakeRun) -> None:
    paths = [make_run(name) for name in ("a/das", "b/das", "c")]
    assert [each.name for each in summarise_all(paths)] == [str(paths[0]), str(paths[1]), "c"]


def test_a_run_that_is_named_twice(make_run: MakeRun) -> None:
    run = make_run("das")
    with pytest.raises(UserError, match="named twice"):
        summarise_all([run, run.parent / "." / "das"])
