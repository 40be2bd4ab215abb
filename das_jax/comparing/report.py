"""What a comparison shows: tables in the terminal, a page, and CSV files."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from das_jax.comparing.cells import Cell
from das_jax.comparing.choice import Choice, choices_of, validation_loss
from das_jax.comparing.curves import plots_of
from das_jax.comparing.outcomes import Measured, measured
from das_jax.comparing.ranking import (
    MEANING,
    MEASURES,
    Row,
    edge_warning,
    headlines,
    idle_warning,
    note,
    ranking,
)
from das_jax.comparing.run import Failure
from das_jax.comparing.warm_up import place_of, warm_up_of
from das_jax.config.load import leaves
from das_jax.config.schema import Config
from das_jax.config.show import difference, to_yaml
from das_jax.errors import UserError
from das_jax.evaluation.comparison import check_comparable
from das_jax.evaluation.csv_files import interval_of, write_csv
from das_jax.evaluation.report import PAGE, environment, write_pages
from das_jax.evaluation.score_table import SHADES
from das_jax.evaluation.scores import read_scores
from das_jax.evaluation.statistics import Estimate
from das_jax.evaluation.summary import summary_of
from das_jax.evaluation.terminal_tables import add_row, new_table
from das_jax.files import write_text

CHOSEN = (
    "Every system stands at the point of its grid that has the lowest OP on validation text. All other "
    "numbers are of held-out text, on which nothing was chosen."
)
COST = (
    "FLOPs are useful ones of learning all domains once; what a method measures between them is included, "
    "the warm-up on general text, which all have in common, is not. Seconds are of the steps alone."
)


class Cells(NamedTuple):
    """A table of text."""

    head: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Report:
    """All that is known of a comparison.

    Attributes:
      title: what it is called.
      reference: the system that the others are compared with.
      base: the configuration of what is equal.
      budget: `steps` or `flop`.
      orders: of the domains.
      seeds: of every system.
      choices: every system that is measured, with its points.
      failures: what could not be learned.
    """

    title: str
    reference: str
    base: Config
    budget: str
    orders: Sequence[tuple[str, ...]]
    seeds: Sequence[int]
    choices: Sequence[Choice]
    failures: Sequence[Failure]

    @property
    def rows(self) -> list[Row]:
        return ranking(self.choices, self.reference)

    @property
    def note(self) -> str:
        found = note(self.seeds, len(self.orders))
        several = len(self.orders) > 1 and any(choice.bound for choice in self.choices)
        return f"{found} Bounds: order 1 alone." if several else found

    @property
    def warnings(self) -> list[str]:
        """What a reader must not miss."""
        found = (warn(each) for warn in (idle_warning, edge_warning) for each in self.choices)
        grids = [each for each in found if each is not None]
        failed = [f"{cell.title} failed: {reason}" for cell, reason in self.failures]
        return [*failed, *self._other_starts(), *grids]

    def _other_starts(self) -> Iterator[str]:
        """Who begins with another model than the others."""
        if warm_up_of(self.base) is None:
            return
        start = place_of(self.base, Path())
        for choice in self.choices:
            if any(place_of(each.point.config, Path()) != start for each in choice.points):
                yield (
                    f"{choice.system}: it begins with a warm-up of its own, as it changes settings that the "
                    "warm-up has, too"
                )

    @property
    def lead(self) -> str:
        """What was done, in a sentence."""
        equal = "steps" if self.budget == "steps" else "the FLOPs of plain training"
        return (
            f"{len(self.choices)} systems learned {', '.join(self.orders[0])} from {self.base.model.path} at "
            f"equal {equal}; orders: {len(self.orders)}, seeds: {len(self.seeds)}."
        )


def report_of(cells: Sequence[Cell], failures: Sequence[Failure], **about: Any) -> Report:
    """Of the cells that are finished.

    Raises:
      UserError: no point is.
    """
    choices = choices_of(measured(cells))
    if not choices:
        reason = f": {failures[0].reason}" if failures else ""
        raise UserError(f"no system is learned, so there is nothing to compare{reason}")
    return Report(choices=choices, failures=failures, **about)


def tables_of(report: Report) -> Iterator[Table]:
    """For the terminal."""
    against = f"against {report.reference}"
    head = ("chosen", "OP", against, "shown", *MEASURES[1:], "steps", "FLOPs", "times")
    table = new_table(
        "systems by OP, the lowest held-out loss first", "system", *head, caption=report.note
    )
    for row in report.rows:
        name = f"{row.place}. {row.name}" if row.place else f"{row.name} (bound)"
        values = [str(row.values[each]) if each in row.values else "" for each in MEASURES]
        edge = " (edge)" if row.choice.edges else ""
        difference = _signed(row.differences.get("OP"))
        add_row(
            *(
                table,
                name,
                f"{row.choice.chosen.point.name}{edge}",
                values[0],
                difference,
                row.shown("OP"),
            ),
            *(*values[1:], _steps(row), _flops(row), f"{row.flops:.2f}"),
        )
    yield table
    if len(report.orders) > 1:
        yield _shown("orders beside each other", _by_order(report))
    if any(len(choice.points) > 1 for choice in report.choices):
        yield _shown("all points; * chosen by validation loss", _points(report))


def _shown(title: str, cells: Cells) -> Table:
    table = new_table(title, *cells.head)
    for row in cells.rows:
        add_row(table, *row)
    return table


def _by_order(report: Report) -> Cells:
    """Systems in rows, measures of every order in columns."""
    wanted = [(name, order) for name in ("OP", "F") for order in range(1, len(report.orders) + 1)]
    head = ["system", *(f"{name}, order {order}" for name, order in wanted)]
    return Cells(
        head,
        [
            [row.name, *(_text(row.choice.chosen.estimate(*each)) for each in wanted)]
            for row in report.rows
        ],
    )


def _points(report: Report) -> Cells:
    """Every point of every system."""
    rows = [
        [
            f"{choice.system}{' *' if point is choice.chosen else ''}",
            point.point.name,
            f"{validation_loss(point):.3f}",
            *(_text(point.estimate(name)) for name in MEASURES),
        ]
        for choice in report.choices
        for point in choice.points
    ]
    return Cells(["system", "point", "validation OP", *MEASURES], rows)


def write_page(report: Report, directory: Path) -> Path:
    """Writes index.html, the CSV files, and below them the runs of every order beside each other.

    Returns:
      Where the page is.
    """
    pages = {
        number: _order_page(report, number, directory)
        for number in range(1, len(report.orders) + 1)
    }
    rows = report.rows
    text = (
        environment(Path(__file__).parent)
        .get_template("page.html")
        .render(
            title=report.title,
            lead=report.lead,
            reference=report.reference,
            rows=rows,
            headlines=headlines(rows, report.reference),
            warnings=report.warnings,
            measures=MEASURES,
            meaning=MEANING,
            note=report.note,
            chosen_note=CHOSEN,
            cost_note=COST,
            plots=plots_of(report.choices),
            orders=report.orders,
            tables={"orders": _by_order(report), "points": _points(report)},
            pages={number: page for number, page in pages.items() if page},
            steps=_steps,
            flops=_flops,
            seconds=_seconds,
            yaml=to_yaml(report.base),
            settings={
                choice.chosen.point.title: _changes(report.base, choice)
                for choice in report.choices
            },
            SHADES=SHADES,
        )
    )
    page = directory / PAGE
    write_text(page, text)
    write_csv(
        directory / "ranking.csv",
        "place system point bound edges measure mean low high difference difference_low difference_high "
        "shown samples flops_of_reference",
        _ranking_rows(rows),
    )
    write_csv(
        directory / "cells.csv",
        "system point chosen order seed text measure value steps flops seconds",
        _cell_rows(report.choices),
    )
    return page


def _order_page(report: Report, number: int, directory: Path) -> str | None:
    """The page of the chosen runs of an order, as `das-jax report` writes it; None if there is none."""
    found = []
    for row in sorted(report.rows, key=lambda row: row.name != report.reference):
        chosen = row.choice.chosen
        cells = [each.cell for (order, _), each in chosen.outcomes.items() if order == number]
        if cells:
            runs = tuple(read_scores(cell.run.path) for cell in cells)
            found.append(summary_of(runs, cells[0].run.path.parent, row.name))
    if not found:
        return None
    check_comparable(found)
    name = f"order-{number}"
    return f"{name}/{write_pages(found, directory / name).name}"


def _changes(base: Config, choice: Choice) -> str:
    """In what a system differs from what is equal."""
    config = choice.chosen.point.config
    changed = difference(base, config)
    known = leaves(config)
    return (
        "\n".join(f"{key}: {now}" for key, _, now in changed if key in known) or "nothing differs"
    )


def _ranking_rows(rows: Sequence[Row]) -> Iterator[Sequence[Any]]:
    for row in rows:
        point, bound = row.choice.chosen.point, row.choice.bound
        head = row.place or "", row.name, point.name, bound, " ".join(row.choice.edges)
        for measure, value in row.values.items():
            difference = row.differences.get(measure)
            interval = ("", "", "") if difference is None else interval_of(difference)
            shown = row.shown(measure), value.samples, row.flops
            yield *head, measure, *interval_of(value), *interval, *shown


def _cell_rows(choices: Sequence[Choice]) -> Iterator[Sequence[Any]]:
    for choice in choices:
        for point in choice.points:
            chosen = point is choice.chosen
            for (order, seed), each in point.outcomes.items():
                texts: Mapping[str, Mapping[str, float]] = {
                    "heldout": each.heldout,
                    "validation": each.validation,
                }
                for text, measures in texts.items():
                    for measure, value in measures.items():
                        head = choice.system, point.point.name, chosen, order, seed, text
                        yield *head, measure, value, each.steps, each.flops, each.seconds


def _text(value: Estimate | None) -> str:
    return "" if value is None else str(value)


def _signed(value: Estimate | None) -> str:
    return "" if value is None else f"{value.mean:+.3f} {value.interval('+')}".rstrip()


def _steps(row: Row) -> str:
    return f"{_mean(row.choice.chosen, 'steps'):,.0f}"


def _flops(row: Row) -> str:
    return f"{_mean(row.choice.chosen, 'flops'):.2e}"


def _seconds(row: Row) -> str:
    return f"{_mean(row.choice.chosen, 'seconds'):,.0f}"


def _mean(point: Measured, name: str) -> float:
    return point.mean(lambda outcome: float(getattr(outcome, name)))
