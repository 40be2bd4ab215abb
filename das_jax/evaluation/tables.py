"""What the report says, as tables in the terminal."""

from collections.abc import Iterator, Sequence

from rich.table import Table
from rich.text import Text

from das_jax.evaluation.comparison import rank, rankings
from das_jax.evaluation.score_table import MEANINGS, TITLES, Kind, ScoreTable
from das_jax.evaluation.summary import Summary

STYLES = {"better": "green", "worse": "red", "": ""}


def report_tables(summaries: Sequence[Summary]) -> Iterator[Table]:
    """Every run's matrices, measures and importance; then, of several, their ranks and their cost."""
    for summary in summaries:
        for kind, table in summary.tables.items():
            yield score_table(table, summary.name)
            yield measure_table(summary, kind)
        protection = free_table(summary)
        if protection is not None:
            yield protection
    if len(summaries) > 1:
        for kind, measure in rankings(summaries):
            yield ranking_table(summaries, kind, measure)
    yield cost_table(summaries)


def score_table(table: ScoreTable, name: str = "") -> Table:
    """A row for the base model and every stage; in brackets the change since the first domain began."""
    shown = _table(f"{name}: {table.title}" if name else table.title, "after", *table.columns)
    for r, row in enumerate(table.rows):
        _add_row(shown, row, *(_cell(table, r, c) for c in range(len(table.columns))))
    for baseline, values in table.baselines.items():
        _add_row(shown, baseline, *("" if value != value else f"{value:.3f}" for value in values))
    return shown


def _cell(table: ScoreTable, row: int, column: int) -> Text:
    value, change = table.cell(row, column), table.change(row, column)
    if value is None:
        return Text("")
    text = str(value) if change is None else f"{value} ({change:+.3f})"
    learned = "bold " if table.learned(row, column) else ""
    return Text(text, learned + STYLES[table.verdict(row, column)])


def measure_table(summary: Summary, kind: Kind) -> Table:
    """Every measure of a matrix, its interval and meaning."""
    shown = _table(
        f"{summary.name}: measures of {TITLES[kind]}", "measure", "mean", "95 % interval"
    )
    shown.add_column("meaning")
    for name, value in summary.measures(kind).items():
        _add_row(shown, name, f"{value.mean:.3f}", value.interval(), MEANINGS[name])
    return shown


def free_table(summary: Summary) -> Table | None:
    """What is left free of every layer after the last domain; None for a method that protects nothing."""
    protection = summary.protection
    if protection is None:
        return None
    title = f"{summary.name}: mean of 1 - I after {protection.maps[-1]}"
    shown = _table(title, "layer", *protection.free_MxL)
    for layer, values in enumerate(
        zip(*(free[-1] for free in protection.free_MxL.values()), strict=True)
    ):
        _add_row(shown, str(layer), *(f"{value:.3f}" for value in values))
    return shown


def ranking_table(summaries: Sequence[Summary], kind: Kind, measure: str) -> Table:
    """The runs by one measure, the best first, and how they differ from the run named first."""
    reference = summaries[0].name
    less = summaries[0].tables[kind].less_is_better(measure)
    title = f"{measure} of {TITLES[kind]} ({'less' if less else 'more'} is better)"
    shown = _table(title, "run", "mean", "95 % interval", f"against {reference}", "95 % interval")
    for run, value, against in rank(summaries, kind, measure):
        difference = (
            ("", "") if against is None else (f"{against.mean:+.3f}", against.interval("+"))
        )
        _add_row(shown, run.name, f"{value.mean:.3f}", value.interval(), *difference)
    return shown


def cost_table(summaries: Sequence[Summary]) -> Table:
    """What training took, per seed."""
    shown = _table("training, per seed", "run", "seeds", "tokens", "FLOPs", "seconds")
    for summary in summaries:
        cost, seeds = summary.cost, str(len(summary.seeds))
        numbers = f"{cost.tokens:,.0f}", f"{cost.flops:.2e}", f"{cost.seconds:,.0f}"
        _add_row(shown, summary.name, seeds, *numbers)
    return shown


def _table(title: str, first: str, *others: str) -> Table:
    table = Table(title=Text(title), min_width=len(title))  # A title is not wrapped.
    table.add_column(Text(first))
    for name in others:
        table.add_column(Text(name), justify="right")
    return table


def _add_row(table: Table, *cells: str | Text) -> None:
    """A row of text in which brackets are brackets."""
    table.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in cells))
