"""Runs beside each other: whether they can be compared, their differences, their ranks."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from das_jax.errors import UserError
from das_jax.evaluation.score_table import Kind
from das_jax.evaluation.statistics import Estimate, estimate, paired_difference
from das_jax.evaluation.summary import Summary, identity, summarise

EVALUATE = "measure both on the same with das-jax evaluate"
COMPARED = {
    "the models or the texts": "train both on the same",
    "the settings of the held-out loss": "train both with the same",
    "the domains learned so far": "finish both with das-jax pretrain",
    "the end tasks": EVALUATE,
    "the cloze facts": EVALUATE,
}
"""What must be equal in runs that are compared, and what to do where it is not."""


def summarise_all(paths: Sequence[Path]) -> list[Summary]:
    """Reads runs that are to be compared, and checks that they can be.

    Runs whose directories have the same name are called by their paths.

    Raises:
      UserError: as `summarise` and `check_comparable`, or a run is named twice.
    """
    places = [path.resolve() for path in paths]
    for path, place in zip(paths, places, strict=True):
        if places.count(place) > 1:
            raise UserError(f"{path} is named twice; name every run once")
    names = [place.name for place in places]
    summaries = [
        summarise(path, name if names.count(name) == 1 else str(path))
        for path, name in zip(paths, names, strict=True)
    ]
    check_comparable(summaries)
    return summaries


def check_comparable(summaries: Sequence[Summary]) -> None:
    """Raises UserError unless all were measured on the same texts, tasks and facts, and are equally far."""
    first = summaries[0]
    for other in summaries[1:]:
        one, two = (identity(summary.runs[0]) for summary in (first, other))
        for what, remedy in COMPARED.items():
            different = dict.fromkeys(name for name, _ in one[what].items() ^ two[what].items())
            if different:
                raise UserError(
                    f"{first.name} and {other.name} cannot be compared: {what} differ "
                    f"({', '.join(sorted(different))}); {remedy}"
                )


def difference(summary: Summary, reference: Summary, kind: Kind, measure: str) -> Estimate | None:
    """A measure of one summary less that of another, paired by seed; None if the seeds do not pair."""
    tables = [each.tables[kind] for each in (summary, reference) if kind in each.tables]
    values = [table.measures().get(measure) for table in tables]
    if len(tables) < 2 or values[0] is None or values[1] is None:
        return None
    # Fine-tuning seeds pair only on models that were pre-trained with the same one.
    seeds = [(table.samples, table.seeds) for table in tables]
    if seeds[0] != seeds[1] or (
        tables[0].samples == "fine-tuning" and summary.seeds != reference.seeds
    ):
        return None
    return paired_difference(values[0], values[1])


class Ranked(NamedTuple):
    """A run's place by one measure: its value, and that less the reference run's."""

    summary: Summary
    value: Estimate
    difference: Estimate | None


def rank(summaries: Sequence[Summary], kind: Kind, measure: str) -> list[Ranked]:
    """The runs that have a measure, the best first; the first of them all is the reference."""
    ranked = []
    for summary in summaries:
        values_N = summary.tables[kind].measures().get(measure) if kind in summary.tables else None
        if values_N is not None:
            against = None
            if summary is not summaries[0]:
                against = difference(summary, summaries[0], kind, measure)
            ranked.append(Ranked(summary, estimate(values_N), against))
    less = bool(ranked) and summaries[0].tables[kind].less_is_better(measure)
    return sorted(ranked, key=lambda each: each.value.mean if less else -each.value.mean)


def rankings(summaries: Sequence[Summary]) -> list[tuple[Kind, str]]:
    """What runs are ranked by: overall performance, and how much they forget."""
    first: Kind = "tasks" if "tasks" in summaries[0].tables else "heldout"
    wanted: list[tuple[Kind, str]] = [(first, "OP"), ("heldout", "F")]
    return [each for each in wanted if rank(summaries, *each)]
