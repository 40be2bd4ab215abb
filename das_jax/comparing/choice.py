"""Which point of a system is reported: the best on text that nothing is reported on."""

from collections.abc import Sequence
from dataclasses import dataclass

from das_jax.comparing.outcomes import Measured, Outcome

CHOSEN_BY = "OP"
"""The measure, a loss: the mean over the domains after the last one."""


@dataclass(frozen=True)
class Choice:
    """A system with the point that was chosen of it.

    Attributes:
      chosen: the best point by the validation text.
      points: all that were measured, in the order of the grid.
      edges: the keys of which the chosen value is the smallest or the largest tried.
      idle: the keys of which every value gives the same, so that none was chosen.
    """

    chosen: Measured
    points: tuple[Measured, ...]
    edges: tuple[str, ...]
    idle: tuple[str, ...] = ()

    @property
    def system(self) -> str:
        return self.chosen.point.system

    @property
    def bound(self) -> bool:
        return self.chosen.point.bound


def choices_of(points: Sequence[Measured]) -> list[Choice]:
    """Of every system that has a measured point, in order."""
    systems: dict[str, list[Measured]] = {}
    for each in points:
        systems.setdefault(each.point.system, []).append(each)
    return [_choose(tuple(of_system)) for of_system in systems.values()]


def _choose(points: tuple[Measured, ...]) -> Choice:
    chosen = min(points, key=validation_loss)  # The first of equals.
    values, grid = chosen.point.values, chosen.point.grid
    idle = tuple(key for key in values if len(grid[key]) > 1 and _is_idle(key, points))
    edges = tuple(key for key in values if values[key] in _ends(grid[key]) and key not in idle)
    return Choice(chosen, points, edges, idle)


def _is_idle(key: str, points: Sequence[Measured]) -> bool:
    """Whether points that differ in a key alone came to the same, to the last bit."""
    losses: dict[str, list[float]] = {}
    for each in points:
        others = repr({**each.point.values, key: None})
        losses.setdefault(others, []).append(validation_loss(each))
    return max(map(len, losses.values())) > 1 and all(len({*each}) == 1 for each in losses.values())


def validation_loss(point: Measured) -> float:
    """What is chosen by: the mean over orders and seeds of OP on the validation text."""

    def loss(outcome: Outcome) -> float:
        return outcome.validation[CHOSEN_BY]

    return point.mean(loss)


def _ends(values: Sequence[object]) -> list[float]:
    """The smallest and the largest of several numbers; nothing of one value, or of what has no size."""
    numbers = [value for value in values if isinstance(value, int | float)]
    several = len(set(numbers)) > 1 and not any(isinstance(value, bool) for value in numbers)
    return [min(numbers), max(numbers)] if several else []
