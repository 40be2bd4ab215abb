"""From what probes measured to what to do: which point, and why."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from das_jax.comparing.outcomes import Measured, Outcome
from das_jax.evaluation.statistics import Estimate, estimate

LITTLE = 0.02
"""The share by which costs differ that count as equal."""


@dataclass(frozen=True)
class Probe:
    """What a point was measured to do; losses in nats per predicted token.

    Attributes:
      measured: its runs.
      domains: the mean loss over the domains in the end, on text for choosing.
      rise: of the loss on general text since the first domain began, on the same.
      flops: of the whole run, in those of plain training.
    """

    measured: Measured
    domains: Estimate
    rise: Estimate
    flops: float

    @property
    def name(self) -> str:
        return self.measured.point.title

    @property
    def most(self) -> float:
        """The rise that seeds leave possible: the upper end of its interval; the rise itself where one seed
        tells none.
        """
        return self.rise.mean + (self.rise.half_width or 0.0)

    @property
    def reported(self) -> tuple[Estimate, Estimate]:
        """The loss on the domains and the rise, on the text that nothing was chosen on."""
        return (
            _over(self.measured, lambda outcome: outcome.heldout["OP"]),
            _over(self.measured, lambda outcome: -outcome.heldout["X-Delta"]),
        )


@dataclass(frozen=True)
class Recommendation:
    """What to do.

    Attributes:
      chosen: the point.
      frontier: the points that no other beats in both losses, the best in general text first.
      kept: whether the probes show that the promise is kept; None where none was asked for.
      why: what the choice went by, one sentence.
    """

    chosen: Probe
    frontier: tuple[Probe, ...]
    kept: bool | None
    why: str


def probe_of(measured: Measured, flops: float) -> Probe:
    """The point as choosing sees it."""
    return Probe(
        measured,
        _over(measured, lambda outcome: outcome.validation["OP"]),
        _over(measured, lambda outcome: -outcome.validation["X-Delta"]),
        flops,
    )


def _over(measured: Measured, value: Callable[[Outcome], float]) -> Estimate:
    return estimate([value(each) for each in measured.outcomes.values()])


def frontier_of(probes: Sequence[Probe]) -> tuple[Probe, ...]:
    """Those that no other one beats in one of the two losses without losing in the other."""
    best, found = float("inf"), []
    for probe in sorted(probes, key=lambda each: (each.rise.mean, each.domains.mean)):
        if probe.domains.mean < best:
            best = probe.domains.mean
            found.append(probe)
    return tuple(found)


def finalists(
    probes: Sequence[Probe], texts: int, promise: float | None, count: int
) -> list[Probe]:
    """The points that are worth a longer look.

    With a promise: those that would be recommended, one after the other, of which the frontier may have none,
    as cost is no part of it; and the one that loses the least, should none of these be sure. Without: those
    of the frontier, spread over it if there are many, and those next to it.

    Args:
      probes: at least one.
      texts: how many domains there are.
      promise: as in `recommend`.
      count: how many are wanted, if there are so many.
    """
    if promise is not None:
        careful = min(probes, key=lambda each: each.rise.mean)
        left, found = [each for each in probes if each is not careful], [careful]
        while left and len(found) < count:
            found.insert(-1, recommend(left, texts, promise).chosen)
            left = [each for each in left if each is not found[-2]]
        return found
    ordered = [*frontier_of(probes)]
    if len(ordered) > count:  # Both ends included.
        places = [round(i * (len(ordered) - 1) / (count - 1)) for i in range(count)]
        return [ordered[place] for place in places]
    rest = sorted(
        (each for each in probes if each not in ordered),
        key=lambda each: texts * each.domains.mean + each.rise.mean,
    )
    return ordered + rest[: count - len(ordered)]


def recommend(probes: Sequence[Probe], texts: int, promise: float | None) -> Recommendation:
    """The point to use.

    With a promise: of the points whose general loss rises by no more, also at the upper end of its interval,
    the cheapest; of those that cost the same, the one that knows the domains best. If none is so sure, of
    those whose mean keeps it; if none does, the one that loses the least.

    Without: the point with the lowest mean loss over all texts, general text and each domain counting alike.

    Args:
      probes: at least one.
      texts: how many domains there are.
      promise: nats per predicted token by which general loss may rise; None for no promise.
    """
    frontier = frontier_of(probes)
    if promise is None:
        chosen = min(probes, key=lambda each: texts * each.domains.mean + each.rise.mean)
        why = f"of {len(probes)} points it has the lowest loss over all texts, general text being one of them"
        return Recommendation(chosen, frontier, None, why)
    sure = [each for each in probes if each.most <= promise]
    likely = [each for each in probes if each.rise.mean <= promise]
    within = f"general loss within {promise:g} nats of where it was"
    if not likely:
        chosen = min(probes, key=lambda each: each.rise.mean)
        why = f"none of {len(probes)} points keeps {within}; this one loses the least"
        return Recommendation(chosen, frontier, False, why)
    least = min(each.flops for each in sure or likely)
    cheap = [each for each in sure or likely if each.flops <= (1 + LITTLE) * least]
    chosen = min(cheap, key=lambda each: each.domains.mean)
    if sure:
        why = (
            f"{len(sure)} of {len(probes)} points keep {within}, at the end of their intervals too; of the "
            f"{len(cheap)} cheapest of these it knows the domains best"
        )
    else:
        why = (
            f"{len(likely)} of {len(probes)} points keep {within} on average, and none at the end of its "
            f"interval; of the {len(cheap)} cheapest of these it knows the domains best"
        )
    return Recommendation(chosen, frontier, bool(sure), why)
