"""The report in the terminal."""

from collections.abc import Iterable

import pytest
from rich.console import Console
from rich.table import Table

from das_jax.evaluation.comparison import summarise_all
from das_jax.evaluation.summary import summarise
from das_jax.evaluation.tables import report_tables, score_table
from tests.evaluation.conftest import EVALUATION, MakeRun


def lines(capsys: pytest.CaptureFixture[str], tables: Iterable[Table]) -> list[str]:
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
    shown = lines(capsys, report_tables(summarise_all(runs)))
    titles = [line.strip() for line in shown if line[:1] not in "┏┃┡│└"]
    of_a_run = [
        "end tasks, accuracy (more is better)",
        "measures of end tasks",
        "held-out masked-LM loss, nats per masked token (less is better)",
        "measures of held-out masked-LM loss",
        "cloze facts, precision at 1 (more is better)",
        "measures of cloze facts",
    ]
    assert titles == [
        *(f"[b]das: {title}" for title in of_a_run),
        "[b]das: mean of 1 - I after reviews",
        *(f"naive: {title}" for title in of_a_run),
        "OP of end tasks (more is better)",
        "F of held-out masked-LM loss (less is better)",
        "training, per seed",
    ]
    (majority, _) = (cells(line) for line in shown if line.startswith("│ majority"))
    assert majority == ["majority", "0.250", "0.250"]
    # Both have the same scores: the difference is zero, and known to be.
    ranks = [cells(line) for line in shown if line.startswith("│ naive")]
    assert ranks[0][3:] == ["+0.000", "[+0.000, +0.000]"]
    assert ranks[-1] == ["naive", "1", "600", "6.00e+03", "6"]


def test_one_run_has_no_rank(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    shown = "\n".join(lines(capsys, report_tables(summarise_all([make_run("das")]))))
    assert "against" not in shown
    assert "training, per seed" in shown
