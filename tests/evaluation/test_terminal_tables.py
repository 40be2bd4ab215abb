"""The report in the terminal."""

import copy
from collections.abc import Iterable

import pytest
from rich.console import Console, RenderableType
from rich.table import Table

from das_jax.evaluation.comparison import summarise_all
from das_jax.evaluation.summary import summarise
from das_jax.evaluation.terminal_tables import report_tables, score_table
from tests.evaluation.conftest import EVALUATION, HELDOUT, MakeRun


def lines(capsys: pytest.CaptureFixture[str], tables: Iterable[RenderableType]) -> list[str]:
    console = Console(width=160)
    for table in tables:
        console.print(table)
    return capsys.readouterr().out.splitlines()


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("│").split("│")]


def test_changes_are_those_since_the_first_domain_began(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    table = summarise(make_run("das")).tables["heldout"]
    shown = lines(capsys, [score_table(table)])
    assert shown[0].strip() == table.title
    assert shown[-3].startswith("One pre-training seed (0), so there are no intervals.")
    rows = [cells(line) for line in shown if line.startswith("│")]
    assert rows == [
        ["base model", "8.000", "9.000", "8.500"],
        ["news", "4.000", "5.000", "5.500"],
        ["acl", "4.500 (+0.500)", "3.000 (-2.000)", "5.500 (+0.000)"],
        ["reviews", "4.250 (+0.250)", "3.250 (-1.750)", "2.000 (-3.500)"],
    ]


def test_what_was_learned_what_got_worse_and_what_did_not_change(make_run: MakeRun) -> None:
    table = score_table(summarise(make_run("das")).tables["heldout"])
    styles = [
        [str(getattr(cell, "style", "")) for cell in column.cells] for column in table.columns[1:]
    ]
    assert styles == [
        ["", "bold ", "red", "red"],
        ["", "", "bold green", "green"],
        ["", "", "", "bold green"],
    ]


def test_every_matrix_with_its_measures_then_the_ranks(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = (
        make_run("[b]das", evaluation=EVALUATION),
        make_run("naive", method="naive", evaluation=EVALUATION),
    )
    summaries = summarise_all(runs)
    titles = [str(each.title) for each in report_tables(summaries) if isinstance(each, Table)]
    shown = lines(capsys, report_tables(summaries))
    of_a_run = [
        "end tasks, accuracy (more is better)",
        "measures of end tasks",
        "held-out loss, nats per masked token (less is better)",
        "measures of held-out loss",
        "cloze facts, precision at 1 (more is better)",
        "measures of cloze facts",
    ]
    assert titles == [
        *(f"[b]das: {title}" for title in of_a_run),
        "[b]das: mean of 1 - I after reviews",
        *(f"naive: {title}" for title in of_a_run),
        "after reviews: end tasks, accuracy (more is better)",
        "after reviews: held-out loss, nats per masked token (less is better)",
        "after reviews: cloze facts, precision at 1 (more is better)",
        "OP of end tasks (more is better)",
        "OP of held-out loss (less is better)",
        "X-Delta of held-out loss (more is better)",
        "X-Delta of cloze facts (more is better)",
        "F of end tasks (less is better)",
        "F of held-out loss (less is better)",
        "FUAR of cloze facts (less is better)",
        "training, per seed",
    ]
    (majority, _) = (cells(line) for line in shown if line.startswith("│ majority"))
    assert majority == ["majority", "0.250", "0.250"]
    # Both have the same scores: the difference is zero, and known to be.
    ranks = [cells(line) for line in shown if line.startswith("│ naive")]
    assert ranks[0] == ["naive", "0.600 ± 0.000 (+0.000)", "0.900 ± 0.000 (+0.000)"]
    assert ranks[3][3:] == ["+0.000", "[+0.000, +0.000]", "nothing: one pre-training seed"]
    assert ranks[-1] == ["naive", "1", "600", "6.00e+03", "6", "1.00 times"]
    headline = "naive against [b]das: one pre-training seed, which shows nothing of another, has "
    assert any(line.startswith(headline) for line in shown)


def test_captions_say_what_intervals_are_of(make_run: MakeRun) -> None:
    runs = [make_run(name, evaluation=EVALUATION) for name in ("das", "naive")]
    captions = {
        str(each.title): str(each.caption)
        for each in report_tables(summarise_all(runs))
        if isinstance(each, Table)
    }
    tuned = "Means over 3 fine-tuning seeds (0, 1, 2); 95 % intervals are Student's t, ± 4.30 standard errors"
    for title, start in (
        ("das: end tasks, accuracy (more is better)", tuned),
        ("das: measures of end tasks", tuned),
        ("OP of end tasks (more is better)", tuned),
        ("after reviews: end tasks, accuracy (more is better)", tuned),
        ("naive: measures of cloze facts", "One pre-training seed (0), so there are no intervals."),
        (
            "F of held-out loss (less is better)",
            "One pre-training seed (0), so there are",
        ),
    ):
        assert captions[title].startswith(start)


def test_changes_that_may_be_chance_have_a_question_mark(make_run: MakeRun) -> None:
    for seed, more in enumerate((0.0, 0.03, -0.03)):
        heldout = copy.deepcopy(HELDOUT)
        heldout["acl"]["reviews"] += 0.01 + more
        heldout["reviews"]["acl"] += more
        run = make_run(f"das/seed-{seed}", seed=seed, heldout=heldout)
    table = score_table(summarise(run.parent).tables["heldout"])
    acl, reviews = (list(column.cells) for column in table.columns[2:])
    assert (str(acl[0]), str(reviews[0])) == ("9.000", "8.500"), "the base model is of no seed"
    assert (str(reviews[2]), reviews[2].style) == ("5.510 ± 0.075 (+0.010?)", "dim")
    assert (str(acl[3]), acl[3].style) == ("3.250 ± 0.075 (-1.750)", "green")


def test_one_run_has_no_rank(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    shown = "\n".join(lines(capsys, report_tables(summarise_all([make_run("das")]))))
    assert "against" not in shown
    assert "training, per seed" in shown
