"""How long probes may be: steps from minutes or FLOPs."""

from collections.abc import Sequence
from typing import NamedTuple

from das_jax.config.schema import Config
from das_jax.errors import UserError

FEWEST = 10
"""Steps on a domain below which a probe says nothing."""


class Pace(NamedTuple):
    """How fast this machine is, as a short run measured it.

    Attributes:
      seconds_per_flop: of a step.
      overhead: seconds of a run besides its steps: compiling, the warm-up, measuring.
    """

    seconds_per_flop: float
    overhead: float


class Budget(NamedTuple):
    """What probes may take; one of the two.

    Attributes:
      minutes: on this machine.
      flops: useful ones of learning domains.
    """

    minutes: float | None = None
    flops: float | None = None

    def share_of_steps(self, share: float, flops: Sequence[float], pace: Pace) -> float:
        """The steps of probes, in those of the whole run, if they are to take a share of the budget.

        Args:
          share: of the budget.
          flops: of every probe, if it were the whole run.
          pace: of this machine; not needed for a budget in FLOPs.
        """
        if self.flops is not None:
            return share * self.flops / sum(flops)
        assert self.minutes is not None
        seconds = share * 60 * self.minutes - pace.overhead * len(flops)
        return seconds / (sum(flops) * pace.seconds_per_flop)

    def __str__(self) -> str:
        return f"{self.minutes:g} minutes" if self.flops is None else f"{self.flops:.3g} FLOPs"


def steps_of(config: Config, share: float) -> list[int]:
    """The steps of a probe on every domain; never more than the run has."""
    full = [domain.steps or config.training.steps for domain in config.domains]
    return [max(1, round(min(share, 1.0) * steps)) for steps in full]


def check_steps(steps: Sequence[int], probes: int, budget: Budget) -> None:
    """Raises UserError if probes would be too short."""
    if min(steps) < FEWEST:
        raise UserError(
            f"{budget} pay for {min(steps)} steps on a domain in each of {probes} probes, and at least "
            f"{FEWEST} are needed; give more with --minutes or --flops, or try less with --candidates"
        )
