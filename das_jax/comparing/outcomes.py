"""What became of cells: the measures of each, on text for choosing and on text for reporting."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from das_jax.comparing.cells import Cell, Point
from das_jax.comparing.run import flops_of, is_finished
from das_jax.evaluation.curves import read_records
from das_jax.evaluation.measures import Matrix
from das_jax.evaluation.score_table import ScoreTable, heldout_table
from das_jax.evaluation.scores import RunScores, read_scores
from das_jax.evaluation.statistics import Estimate, estimate, paired_difference
from das_jax.training.stages import stages_of

GAIN = "gain"
"""The measure that all have, also those that learn all domains at once: what all of learning brought, the
mean over the domains of A[T][j] - A[0][j]."""

Measures = Mapping[str, float]


@dataclass(frozen=True)
class Outcome:
    """What became of a cell.

    Attributes:
      cell: the run.
      heldout: its measures on the text that is reported on, by name; OP is a loss, all others are gains or
        losses of score, in nats.
      validation: the same on the text that is chosen on.
      steps: optimizer steps on all domains.
      flops: useful ones of learning the domains, what is measured between them included.
      seconds: of the steps on domains.
    """

    cell: Cell
    heldout: Measures
    validation: Measures
    steps: int
    flops: int
    seconds: float


@dataclass(frozen=True)
class Measured:
    """A point that all its cells are finished of.

    Attributes:
      point: the system and what was chosen of its grid.
      outcomes: of its cells, {(order, seed): outcome}.
    """

    point: Point
    outcomes: Mapping[tuple[int, int], Outcome]

    def estimate(self, measure: str, order: int | None = None) -> Estimate | None:
        """A measure on the text that is reported on, over orders and seeds, or the seeds of one order; None
        if it is not defined.
        """
        values = [
            each.heldout.get(measure)
            for (number, _), each in self.outcomes.items()
            if order in (None, number)
        ]
        known = [value for value in values if value is not None]
        return estimate(known) if known and len(known) == len(values) else None

    def against(self, other: "Measured", measure: str) -> Estimate | None:
        """A measure less that of another point, paired by order and seed, over the pairs that there are; None
        if it is not defined.
        """
        pairs = [
            (each.heldout.get(measure), other.outcomes[place].heldout.get(measure))
            for place, each in self.outcomes.items()
            if place in other.outcomes
        ]
        if not pairs or any(value is None for pair in pairs for value in pair):
            return None
        return paired_difference(*np.array(pairs, np.float64).T)

    def mean(self, value: Callable[[Outcome], float]) -> float:
        """Of something that every outcome has."""
        return float(np.mean([value(each) for each in self.outcomes.values()]))


def outcomes_of(cells: Sequence[Cell]) -> list[Outcome]:
    """Of the cells that are finished, in order."""
    return [_outcome(cell) for cell in cells if is_finished(cell)]


def measured(cells: Sequence[Cell]) -> list[Measured]:
    """The points that all their cells are finished of, in order."""
    found: dict[tuple[str, str], dict[tuple[int, int], Outcome | None]] = {}
    finished = {id(each.cell): each for each in outcomes_of(cells)}
    points = {(cell.point.system, cell.point.name): cell.point for cell in cells}
    for cell in cells:
        by_place = found.setdefault((cell.point.system, cell.point.name), {})
        by_place[cell.order, cell.seed] = finished.get(id(cell))
    return [
        Measured(points[key], {place: each for place, each in of_point.items() if each is not None})
        for key, of_point in found.items()
        if None not in of_point.values()
    ]


def _outcome(cell: Cell) -> Outcome:
    scores = read_scores(cell.run.path)
    stages = [stage for stage in stages_of(cell.config) if not stage.warms_up]
    return Outcome(
        cell,
        _measures(scores),
        _measures(dataclasses.replace(scores, heldout=scores.validation)),
        sum(stage.steps for stage in stages),
        flops_of(cell),
        seconds_of(cell.run.path, [stage.name for stage in stages]),
    )


def seconds_of(run: Path, stages: Sequence[str]) -> float:
    """What the steps of some stages took, by name."""
    records = [each for each in read_records(run) if each.stage in stages]
    return sum(each.metrics.get("seconds_per_step", 0.0) * each.steps for each in records)


def _measures(scores: RunScores) -> Measures:
    """Every measure of a matrix that is defined; they go by places in the order, not by names."""
    if not scores.heldout:
        return {}  # There is no text to choose on.
    table = heldout_table((scores,))
    found = {name: float(values_N[0]) for name, values_N in table.measures().items()}
    gain = _gain(table)
    return found if gain is None else {**found, GAIN: float(gain[0])}


def _gain(table: ScoreTable) -> np.ndarray | None:
    """The mean over the domains of A[T][j] - A[0][j], [N]."""
    ends = -table.values_NxRxC[:, [table.start, -1]]
    # Seen as general knowledge, the texts of domains are measured from first to last.
    domains = tuple(0 if number > 0 else -1 for number in table.domains)
    return Matrix(ends, domains).general_delta()
