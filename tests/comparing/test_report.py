"""What a comparison concludes, from cells made by hand."""

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest

from das_jax.comparing.cells import Cell, base_of
from das_jax.comparing.choice import choices_of, validation_loss
from das_jax.comparing.file import Comparison
from das_jax.comparing.outcomes import measured
from das_jax.comparing.ranking import edge_warning, idle_warning, ranking
from das_jax.comparing.report import Report, report_of, tables_of, write_page
from das_jax.comparing.warm_up import place_of
from das_jax.evaluation.statistics import paired_difference
from tests.comparing.conftest import cells_by_hand

ORDERS = [("papers", "reviews"), ("reviews", "papers")]
SEEDS = [0, 1]


def scores(cell: Cell) -> tuple[float, float, float]:
    """Held-out text likes the largest rate, validation text the middle one; seeds and orders differ."""
    rate = cell.point.values["training.learning_rate"]
    noise = 0.1 * cell.seed + 0.3 * cell.order
    strength = cell.point.values.get("method.strength", 0.0)
    heldout = {1e-4: 2.0, 1e-3: 1.9, 1e-2: 1.5}[rate] + noise - 0.01 * strength
    validation = {1e-4: 2.0, 1e-3: 1.4, 1e-2: 1.8}[rate] + noise - 0.01 * strength
    return 0.25 + 0.1 * cell.seed, heldout, validation


@pytest.fixture
def cells(grid: Comparison) -> list[Cell]:
    return cells_by_hand(grid, ORDERS, SEEDS, scores)


@pytest.fixture
def report(cells: list[Cell], grid: Comparison) -> Report:
    about = {"title": "grid", "reference": "plain", "base": base_of(grid), "budget": "steps"}
    return report_of(cells, [], orders=ORDERS, seeds=SEEDS, **about)


def test_a_point_is_chosen_on_validation_text_and_reported_on_held_out_text(report: Report) -> None:
    plain, ewc = report.choices
    assert plain.chosen.point.values == {"training.learning_rate": 1e-3}
    assert ewc.chosen.point.values == {"training.learning_rate": 1e-3, "method.strength": 50.0}
    overall = plain.chosen.estimate("OP")
    assert overall is not None
    assert overall.mean == pytest.approx(1.9 + 0.05 + 0.45)
    assert validation_loss(plain.chosen) == pytest.approx(1.4 + 0.05 + 0.45)


def test_a_choice_at_the_end_of_its_grid_is_said(report: Report) -> None:
    plain, ewc = report.choices
    assert (plain.idle, ewc.idle) == ((), ())
    assert edge_warning(plain) is None
    assert edge_warning(ewc) == (
        "ewc: the chosen method.strength 50.0 is the last one tried; widen the grid"
    )


def test_what_is_varied_in_vain_is_said_and_is_no_edge(grid: Comparison) -> None:
    cells = cells_by_hand(grid, ORDERS, SEEDS, lambda cell: (0.1, 2.0 + 0.1 * cell.seed, 2.0))
    plain, _ = choices_of(measured(cells))
    assert (plain.edges, plain.idle) == ((), ("training.learning_rate",))
    assert "training.learning_rate made no difference" in (idle_warning(plain) or "")


def test_another_start_is_said(report: Report, cells: list[Cell]) -> None:
    assert not [each for each in report.warnings if "warm-up" in each]
    base = dataclasses.replace(
        report.base, training=dataclasses.replace(report.base.training, weight_decay=0.1)
    )
    of_optimizer = dataclasses.replace(
        report.base, training=dataclasses.replace(report.base.training, optimizer="lion", steps=9)
    )
    assert place_of(of_optimizer, Path()) == place_of(report.base, Path())
    said = dataclasses.replace(report, base=base).warnings
    assert "ewc: it begins with a warm-up of its own" in " ".join(said)


def test_measures_go_by_the_place_in_the_order(cells: list[Cell]) -> None:
    """The first domain of each order is the one that is forgotten."""
    (first, *_) = measured(cells)
    for (_, seed), outcome in first.outcomes.items():
        assert outcome.heldout["F"] == pytest.approx(0.25 + 0.1 * seed)
        assert outcome.heldout["X-Delta"] == pytest.approx(-0.5)
        assert outcome.heldout["gain"] == pytest.approx(3.0 - outcome.heldout["OP"])


def test_differences_are_paired_by_order_and_seed(grid: Comparison) -> None:
    """What a pair has in common is no noise of its difference."""

    def noisy(cell: Cell) -> tuple[float, float, float]:
        of_pair = {(1, 0): 0.0, (1, 1): 0.5, (2, 0): 0.9, (2, 1): -0.4}[cell.order, cell.seed]
        own = 0.01 * cell.seed if cell.point.system == "ewc" else 0.0
        better = 0.1 if cell.point.system == "ewc" else 0.0
        return 0.1, 2.0 + of_pair + own - better, 2.0

    rows = ranking(choices_of(measured(cells_by_hand(grid, ORDERS, SEEDS, noisy))), "plain")
    assert [(row.place, row.name) for row in rows] == [(1, "ewc"), (2, "plain")]
    difference = rows[0].differences["OP"]
    assert difference == pytest.approx(
        paired_difference(np.array([-0.1, -0.09, -0.1, -0.09]), np.zeros(4))
    )
    assert difference.samples == 4
    assert (rows[0].shown("OP"), rows[0].shown("F")) == ("better", "equal")


def test_a_point_that_lacks_a_cell_is_not_compared(cells: list[Cell]) -> None:
    (cells[0].run.path / "cell.json").unlink()
    assert len(measured(cells)) == 8


def test_page_and_tables(report: Report, tmp_path: Path) -> None:
    page = write_page(report, tmp_path / "report")
    text = page.read_text()
    assert text.count("<svg class=") == 2
    assert "widen the grid" in text
    assert 'href="order-2/index.html"' in text
    assert (page.parent / "order-2" / "index.html").is_file()
    rows = list(csv.DictReader((page.parent / "cells.csv").read_text().splitlines()))
    texts = {row["text"] for row in rows}
    assert texts == {"heldout", "validation"}
    assert len({(row["system"], row["point"]) for row in rows}) == 9
    assert len(list(tables_of(report))) == 3
