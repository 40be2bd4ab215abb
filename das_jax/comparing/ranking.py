"""Systems beside each other, each at its chosen point: places, differences, cost."""

from collections.abc import Sequence
from dataclasses import dataclass

from das_jax.comparing.choice import Choice
from das_jax.comparing.outcomes import GAIN
from das_jax.evaluation.comparison import SHOWN
from das_jax.evaluation.score_table import LESS_IS_BETTER, MEANINGS
from das_jax.evaluation.statistics import Estimate, standard_errors

MEASURES = ("OP", "F", "plasticity", "X-Delta", GAIN)
"""What is shown of every system; the first one ranks. Of held-out losses, in nats per predicted token."""

ONE_RUN = "nothing: one run each"

LESS = {*LESS_IS_BETTER, "OP"}

MEANING = {
    **MEANINGS,
    "OP": "the mean loss over the domains after the last one; less is better",
    "X-Delta": "general text: what its loss fell since the first domain began; negative: what was forgotten",
    GAIN: "what the loss of the domains fell since the first one began",
}


PHRASES = {
    "better": "better in",
    "worse": "worse in",
    "equal": "equal in",
    "nothing": "not shown:",
    ONE_RUN: "one run each, so nothing is shown:",
}


@dataclass(frozen=True)
class Row:
    """A system as it is ranked.

    Attributes:
      choice: the system and its point.
      place: from 1; 0 for a bound.
      values: of the measures that are defined.
      differences: the same less the reference's, paired by order and seed.
      flops: in those of the reference.
    """

    choice: Choice
    place: int
    values: dict[str, Estimate]
    differences: dict[str, Estimate]
    flops: float

    @property
    def name(self) -> str:
        return self.choice.system

    def shown(self, measure: str) -> str:
        """What the pairs show of a difference."""
        difference = self.differences.get(measure)
        if difference is None:
            return ""
        if difference.samples < 2:
            return ONE_RUN
        return SHOWN[difference.verdict(measure not in LESS)]


def ranking(choices: Sequence[Choice], reference: str) -> list[Row]:
    """The systems, the best by OP on the text that is reported on first; the bounds after them.

    Args:
      choices: of every system; without the reference there are no differences.
      reference: the system that the others are compared with.
    """
    first = next((each for each in choices if each.system == reference), None)
    rows = []
    for choice in choices:
        chosen = choice.chosen
        values = {name: value for name in MEASURES if (value := chosen.estimate(name)) is not None}
        differences, relative = {}, float("nan")
        if first is not None:
            relative = _flops(choice) / _flops(first)
            if choice is not first:
                found = {name: chosen.against(first.chosen, name) for name in values}
                differences = {name: value for name, value in found.items() if value is not None}
        rows.append(Row(choice, 0, values, differences, relative))
    ranked = sorted(
        (row for row in rows if not row.choice.bound), key=lambda row: row.values["OP"].mean
    )
    placed = [
        Row(row.choice, place, row.values, row.differences, row.flops)
        for place, row in enumerate(ranked, 1)
    ]
    return placed + [row for row in rows if row.choice.bound]


def _flops(choice: Choice) -> float:
    return choice.chosen.mean(lambda outcome: outcome.flops)


def headlines(rows: Sequence[Row], reference: str) -> list[str]:
    """One sentence for every system but the reference: what it is shown to be better and worse in."""
    found = []
    for row in rows:
        if row.choice.bound or row.name == reference:
            continue
        parts: dict[str, list[str]] = {}
        for measure in MEASURES[:-1]:
            if measure in row.differences:
                difference = row.differences[measure]
                text = f"{measure} {difference.mean:+.3f} {difference.interval('+')}".rstrip()
                parts.setdefault(row.shown(measure), []).append(text)
        said = [
            f"{phrase} {', '.join(parts[shown])}"
            for shown, phrase in PHRASES.items()
            if shown in parts
        ]
        flops = [] if row.flops != row.flops else [f"{row.flops:.2f} times the FLOPs"]
        found.append(f"{row.name} against {reference}: {'; '.join(said + flops)}.")
    return found


def note(seeds: Sequence[int], orders: int) -> str:
    """What means and intervals are taken over."""
    runs = len(seeds) * orders
    named = ", ".join(map(str, seeds))
    over = f"{orders} order{'s' * (orders > 1)} x seed{'s' * (len(seeds) > 1)} {named}"
    if runs < 2:
        return f"One run of each ({over}), so there are no intervals."
    return (
        f"Means over {runs} runs ({over}); 95 % intervals are Student's t, "
        f"± {standard_errors(runs):.2f} standard errors, the runs taken as independent. Differences are "
        "paired: the same order and the same seed. Every interval is for itself: of twenty differences of "
        "equal systems one leaves out zero."
    )


def idle_warning(choice: Choice) -> str | None:
    """A sentence if something was varied in vain."""
    if not choice.idle:
        return None
    return (
        f"{choice.system}: {', '.join(choice.idle)} made no difference, so another setting takes its place "
        "(as method.learning_rate that of training.learning_rate); vary that"
    )


def edge_warning(choice: Choice) -> str | None:
    """A sentence if the best of a grid is at its end, where a better one may lie beyond."""
    if not choice.edges:
        return None
    values = choice.chosen.point.values
    ends = ", ".join(f"{key} {values[key]}" for key in choice.edges)
    return f"{choice.system}: the chosen {ends} is the last one tried; widen the grid"
