"""What the report says, as tables in the terminal."""

from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from das_jax.evaluation.comparison import (
    last_scores,
    rank,
    rankings,
    relative_flops,
    samples_notes,
)
from das_jax.evaluation.headline import headlines
from das_jax.evaluation.score_table import MEANINGS, TITLES, Kind, ScoreTable
from das_jax.evaluation.statistics import Estimate
from das_jax.evaluation.summary import Summary

STYLES = {"better": "green", "worse": "red", "unclear": "dim", "": ""}
CHANGES = "green or red if its interval, paired by seed, leaves out zero; ? if not"
ONE_SEED = "green is better, red is worse; one seed does not tell whether by chance"


def report_tables(summaries: Sequence[Summary]) -> Iterator[RenderableType]:
    """Every run's matrices, measures and importance; then, of several, their last models, their ranks, their
    cost, and what that amounts to.
    """
    for summary in summaries:
        for kind, table in summary.tables.items():
            yield score_table(table, summary.name)
            yield measure_table(summary, kind)
        protection = free_table(summary)
        if protection is not None:
            yield protection
    if len(summaries) > 1:
        for kind in summaries[0].tables:
            yield last_table(summaries, kind)
        for kind, measure in rankings(summaries):
            yield ranking_table(summaries, kind, measure)
    yield cost_table(summaries)
    for headline in headlines(summaries):
        yield Text(headline, "bold")


def score_table(table: ScoreTable, name: str = "") -> Table:
    """A row for the base model and every stage; in brackets the change since the first domain began."""
    title = f"{name}: {table.title}" if name else table.title
    brackets = f"In brackets the change since {table.rows[table.start]}; {_colours(table)}."
    shown = new_table(title, "after", *table.columns, caption=f"{table.note()} {brackets}")
    for r, row in enumerate(table.rows):
        add_row(shown, row, *(_cell(table, r, c) for c in range(len(table.columns))))
    for baseline, values in table.baselines.items():
        add_row(shown, baseline, *("" if value != value else f"{value:.3f}" for value in values))
    return shown


def _cell(table: ScoreTable, row: int, column: int) -> Text:
    text = _compared(table, table.cell(row, column), table.change(row, column))
    if table.learned(row, column):
        text.style = f"bold {text.style}"
    return text


def _compared(table: ScoreTable, value: Estimate | None, difference: Estimate | None) -> Text:
    """A value and, in brackets, how it differs; with a question mark, where that may be chance."""
    if value is None:
        return Text("")
    if difference is None:
        return Text(str(value))
    verdict = difference.verdict(table.larger_is_better)
    doubt = "?" if verdict == "unclear" else ""
    return Text(f"{value} ({difference.mean:+.3f}{doubt})", STYLES[verdict])


def _colours(table: ScoreTable) -> str:
    return CHANGES if len(table.seeds) > 1 else ONE_SEED


def measure_table(summary: Summary, kind: Kind) -> Table:
    """Every measure of a matrix, its interval and meaning."""
    title, note = f"{summary.name}: measures of {TITLES[kind]}", summary.tables[kind].note()
    shown = new_table(title, "measure", "mean", "95 % interval", caption=note)
    shown.add_column("meaning")
    for name, value in summary.measures(kind).items():
        add_row(shown, name, f"{value.mean:.3f}", value.interval(), MEANINGS[name])
    return shown


def free_table(summary: Summary) -> Table | None:
    """What is left free of every layer after the last domain; None for a method that protects nothing."""
    protection = summary.protection
    if protection is None:
        return None
    title = f"{summary.name}: mean of 1 - I after {protection.maps[-1]}"
    shown = new_table(title, "layer", *protection.free_MxL)
    for layer, values in enumerate(
        zip(*(free[-1] for free in protection.free_MxL.values()), strict=True)
    ):
        add_row(shown, str(layer), *(f"{value:.3f}" for value in values))
    return shown


def last_table(summaries: Sequence[Summary], kind: Kind) -> Table:
    """The last model of every run on every task or text; in brackets how it differs from the first run's."""
    reference = summaries[0]
    table = reference.tables[kind]
    brackets = f"In brackets the difference to {reference.name}; {_colours(table)}."
    note = f"{samples_notes(summaries, kind)} {brackets}"
    shown = new_table(f"after {table.rows[-1]}: {table.title}", "run", *table.columns, caption=note)
    for summary, row in last_scores(summaries, kind):
        add_row(shown, summary.name, *(_compared(table, *cell) for cell in row))
    return shown


def ranking_table(summaries: Sequence[Summary], kind: Kind, measure: str) -> Table:
    """The runs by one measure, the best first, and how they differ from the run named first."""
    reference = summaries[0].name
    less = summaries[0].tables[kind].less_is_better(measure)
    title = f"{measure} of {TITLES[kind]} ({'less' if less else 'more'} is better)"
    columns = ("run", "mean", "95 % interval", f"against {reference}", "95 % interval")
    note = f"{samples_notes(summaries, kind)} Differences are paired by seed."
    shown = new_table(title, *columns, caption=note)
    shown.add_column("shown by the seeds")
    for run, value, against, seeds in rank(summaries, kind, measure):
        difference = (
            ("", "") if against is None else (f"{against.mean:+.3f}", against.interval("+"))
        )
        add_row(shown, run.name, f"{value.mean:.3f}", value.interval(), *difference, seeds)
    return shown


def cost_table(summaries: Sequence[Summary]) -> Table:
    """What training took, per seed; of several runs in FLOPs of the first, too."""
    several = [f"FLOPs of {summaries[0].name}"] if len(summaries) > 1 else []
    names = ("run", "seeds", "tokens", "FLOPs", "seconds", *several)
    shown = new_table("training, per seed", *names)
    for summary in sorted(summaries, key=lambda each: each.cost.flops):
        cost, seeds = summary.cost, str(len(summary.seeds))
        numbers = f"{cost.tokens:,.0f}", f"{cost.flops:.2e}", f"{cost.seconds:,.0f}"
        relative = relative_flops(summary, summaries[0])
        times = ["" if relative is None else f"{relative:.2f} times"] if several else []
        add_row(shown, summary.name, seeds, *numbers, *times)
    return shown


def new_table(title: str, first: str, *others: str, caption: str = "") -> Table:
    """An empty table; all columns but the first are of numbers."""
    table = Table(title=Text(title), min_width=len(title))  # A title is not wrapped.
    if caption:
        table.caption, table.caption_justify = Text(caption, "table.caption"), "left"
    table.add_column(Text(first))
    for name in others:
        table.add_column(Text(name), justify="right")
    return table


def add_row(table: Table, *cells: str | Text) -> None:
    """A row of text in which brackets are brackets."""
    table.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in cells))
