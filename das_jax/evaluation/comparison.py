"""Runs beside each other: whether they can be compared, their differences, their ranks."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from das_jax.errors import UserError
from das_jax.evaluation.score_table import TITLES, Kind
from das_jax.evaluation.scores import PROBES
from das_jax.evaluation.statistics import Estimate, Verdict, estimate, paired_difference
from das_jax.evaluation.summary import Summary, identity, summarise

EVALUATE = "measure both on the same with das-jax evaluate"
COMPARED = {
    "the models or the texts": "train both on the same",
    "the settings of the held-out loss": "train both with the same",
    "the domains learned so far": "finish both with das-jax pretrain",
    "the end tasks": EVALUATE,
    "the cloze facts": EVALUATE,
    **{f"the {TITLES[kind]}": EVALUATE for kind in PROBES},
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


def paired(summary: Summary, reference: Summary, kind: Kind) -> bool:
    """Whether sample n of a matrix of both is of the same seed."""
    if kind not in summary.tables or kind not in reference.tables:
        return False
    one, two = summary.tables[kind], reference.tables[kind]
    # Fine-tuning seeds pair only on models that were pre-trained with the same one.
    return (one.samples, one.seeds) == (two.samples, two.seeds) and (
        one.samples == "pre-training" or summary.seeds == reference.seeds
    )


def difference(summary: Summary, reference: Summary, kind: Kind, measure: str) -> Estimate | None:
    """A measure of one summary less that of another, paired by seed; None if the seeds do not pair."""
    values = [each.samples(kind).get(measure) for each in (summary, reference)]
    if values[0] is None or values[1] is None or not paired(summary, reference, kind):
        return None
    return paired_difference(values[0], values[1])


def last_difference(
    summary: Summary, reference: Summary, kind: Kind, column: int
) -> Estimate | None:
    """The last model's score in one column less that of another run's; None as in `difference`."""
    if not paired(summary, reference, kind):
        return None
    pair = [each.tables[kind].values_NxRxC[:, -1, column] for each in (summary, reference)]
    return None if np.isnan(pair).any() else paired_difference(*pair)


def last_scores(
    summaries: Sequence[Summary], kind: Kind
) -> Iterator[tuple[Summary, list[tuple[Estimate | None, Estimate | None]]]]:
    """Of every run that has a matrix its last row: every score, and what it is above the first run's."""
    reference = summaries[0]
    for summary in summaries:
        if kind in summary.tables:
            table = summary.tables[kind]
            row = []
            for column in range(len(table.columns)):
                against = None
                if summary is not reference:
                    against = last_difference(summary, reference, kind, column)
                row.append((table.cell(len(table.rows) - 1, column), against))
            yield summary, row


class Ranked(NamedTuple):
    """A run's place by one measure: its value, that less the reference run's, and what seeds show thereby."""

    summary: Summary
    value: Estimate
    difference: Estimate | None
    shown: str


SHOWN: dict[Verdict, str] = {
    "better": "better",
    "worse": "worse",
    "unclear": "nothing",
    "": "equal",
}
"""What a column `shown by the seeds` says."""

ONE_SEED = "nothing: one pre-training seed"
NOT_PAIRED = "nothing: other seeds"


def rank(summaries: Sequence[Summary], kind: Kind, measure: str) -> list[Ranked]:
    """The runs that have a measure, the best first; the first of them all is the reference."""
    ranked, reference = [], summaries[0]
    for summary in summaries:
        values_N = summary.samples(kind).get(measure)
        if values_N is not None:
            against, shown = None, ""
            if summary is not reference:
                against = difference(summary, reference, kind, measure)
                shown = NOT_PAIRED if against is None else ONE_SEED
                # Of a method only pre-training seeds show something.
                if against is not None and len(reference.seeds) > 1:
                    larger = not reference.tables[kind].less_is_better(measure)
                    shown = SHOWN[against.verdict(larger)]
            ranked.append(Ranked(summary, estimate(values_N), against, shown))
    less = bool(ranked) and reference.tables[kind].less_is_better(measure)
    return sorted(ranked, key=lambda each: each.value.mean if less else -each.value.mean)


def rankings(summaries: Sequence[Summary]) -> list[tuple[Kind, str]]:
    """What runs are ranked by: overall performance, general knowledge and forgetting, of end tasks, held-out
    losses and facts as far as there are some.
    """
    wanted = itertools.product(("OP", "X-Delta", "F", "FUAR"), summaries[0].tables)
    return [(kind, measure) for measure, kind in wanted if rank(summaries, kind, measure)]


def relative_flops(summary: Summary, reference: Summary) -> float | None:
    """The FLOPs of training in those of another run; None where they are not known."""
    one, other = summary.cost.flops, reference.cost.flops
    return one / other if one > 0 and other > 0 else None


def samples_notes(summaries: Sequence[Summary], kind: Kind) -> str:
    """What the means and intervals of all runs are taken over; by run, where that is not the same."""
    notes: dict[str, list[str]] = {}
    for summary in summaries:
        if kind in summary.tables:
            notes.setdefault(summary.tables[kind].note(), []).append(summary.name)
    if len(notes) == 1:
        return next(iter(notes))
    return " ".join(f"{', '.join(names)}: {note}" for note, names in notes.items())
