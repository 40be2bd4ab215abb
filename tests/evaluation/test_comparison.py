"""Runs beside each other."""

import copy
from pathlib import Path
from typing import Any

import pytest

from das_jax.errors import UserError
from das_jax.evaluation.comparison import difference, rank, rankings, relative_flops, summarise_all
from das_jax.evaluation.headline import headlines
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
    # Differences .4, .5 and .3: a standard error of .1 / sqrt(3), times 4.3027.
    assert ranked[2].difference == pytest.approx((0.4, 0.4 - 0.24841, 0.4 + 0.24841, 3), rel=1e-4)
    assert [each.shown for each in ranked] == ["nothing", "", "worse"]
    assert rankings(summaries) == [("heldout", "OP"), ("heldout", "X-Delta"), ("heldout", "F")]


def test_of_end_tasks_losses_and_facts_all_measures_rank(make_run: MakeRun) -> None:
    worse = copy.deepcopy(EVALUATION)
    worse["tasks"]["intent"]["rows"]["reviews"]["scores"]["accuracy"] = [0.1, 0.1, 0.1]
    paths = make_run("das", evaluation=worse), make_run("naive", evaluation=EVALUATION)
    summaries = summarise_all(paths)
    assert rankings(summaries) == [
        ("tasks", "OP"),
        ("heldout", "OP"),
        ("heldout", "X-Delta"),
        ("cloze", "X-Delta"),
        ("tasks", "F"),
        ("heldout", "F"),
        ("cloze", "FUAR"),
    ]
    ranked = rank(summaries, "tasks", "OP")
    assert [each.summary.name for each in ranked] == ["naive", "das"], "the most first"
    assert ranked[0].difference == pytest.approx((0.25, 0.25, 0.25, 3))
    assert ranked[0].shown == "nothing: one pre-training seed", "fine-tuning seeds show no method"


def test_seeds_that_do_not_pair(make_run: MakeRun) -> None:
    das, naive = write_seeds(make_run, "das", [0.1, 0.2]), write_seeds(make_run, "naive", [0.5])
    one, two = summarise_all([das, naive])
    assert difference(two, one, "heldout", "F") is None
    assert [each.shown for each in rank([one, two], "heldout", "F")] == ["", "nothing: other seeds"]
    (headline,) = headlines([one, two])
    assert "not compared, as the seeds are not the same, in held-out OP, " in headline
    assert "better" not in headline


def test_fine_tuning_seeds_pair_only_on_models_of_the_same_seed(make_run: MakeRun) -> None:
    one, two, three = summarise_all(
        [make_run(name, seed=seed, evaluation=EVALUATION) for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    )  # fmt: skip
    assert difference(two, one, "tasks", "OP") == pytest.approx((0, 0, 0, 3))
    assert difference(three, one, "tasks", "OP") is None


def write_losses(
    make_run: MakeRun,
    name: str,
    method: str,
    losses: list[tuple[float, float, float, float]],
    flops: float,
) -> Path:
    """A run with a seed for each: of acl right after it was learned, then of all texts in the end."""
    for seed, (learned, news, acl, reviews) in enumerate(losses):
        heldout = copy.deepcopy(HELDOUT)
        heldout["acl"]["acl"] = learned
        heldout["reviews"] = {"news": news, "acl": acl, "reviews": reviews}
        run = make_run(f"{name}/seed-{seed}", seed=seed, method=method, heldout=heldout)
        for path in run.glob("*/metrics.jsonl"):
            path.write_text(path.read_text().replace("1000.0", str(flops)))
    return run.parent


def test_the_headline_of_a_run_that_forgets_more_and_ends_better_on_everything(
    make_run: MakeRun,
) -> None:
    """Two seeds. F alone would speak for das: .227 against .262."""
    das = write_losses(
        make_run, "das", "das", [(3.1, 4.3, 3.326, 2.1), (3.2, 4.4, 3.428, 2.2)], 1000.0
    )
    naive = write_losses(
        make_run, "naive", "naive", [(3.0, 4.2, 3.26, 2.0), (3.1, 4.3001, 3.364, 2.0998)], 500.0
    )
    summaries = summarise_all([das, naive])
    assert [each.value.mean for each in rank(summaries, "heldout", "F")] == pytest.approx(
        [0.227, 0.262]
    )
    assert relative_flops(summaries[1], summaries[0]) == 0.5
    assert headlines(summaries) == [
        "naive against das: better in held-out OP -0.083 [-0.088, -0.077], "
        "held-out X-Delta +0.100 [+0.099, +0.101]; "
        "worse in held-out F +0.035 [+0.022, +0.048]; "
        "ends better on 3, worse on 0 of 3 texts (3 beyond chance); 0.50 times the FLOPs."
    ]


def test_the_headline_of_what_may_be_chance(make_run: MakeRun) -> None:
    das = write_seeds(make_run, "das", [0.1, 0.2])
    naive = write_seeds(make_run, "naive", [0.11, 0.18], method="naive")
    assert headlines(summarise_all([das, naive])) == [
        "naive against das: no difference that these seeds can show in held-out OP -0.003 [-0.098, +0.093], "
        "held-out F -0.005 [-0.196, +0.186]; equal in held-out X-Delta; "
        "ends better on 1, worse on 0 of 3 texts (none beyond chance); 1.00 times the FLOPs."
    ]


def test_the_headline_of_one_seed_claims_nothing(make_run: MakeRun) -> None:
    better = copy.deepcopy(HELDOUT)
    better["reviews"]["acl"] -= 0.1
    (headline,) = headlines(
        summarise_all([make_run("das"), make_run("naive", method="naive", heldout=better)])
    )
    assert headline.startswith(
        "naive against das: one pre-training seed, which shows nothing of another, has held-out OP -0.050 "
        "(better), "
    )
    assert "ends better on 1, worse on 0 of 3 texts;" in headline


def test_without_logged_steps_the_cost_is_not_known(make_run: MakeRun) -> None:
    runs = [make_run("das"), make_run("naive", method="naive")]
    for path in runs[0].glob("*/metrics.jsonl"):
        path.write_text("")
    assert headlines(summarise_all(runs))[0].endswith("; FLOPs not known.")


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
