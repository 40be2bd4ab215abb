"""How long probes may be: steps from minutes or FLOPs."""

from collections.abc import Sequence
from typing import NamedTuple

from das_jax.comparing.budget import stage_flops
from das_jax.config.schema import Config
from das_jax.errors import UserError

FEWEST = 10
"""Steps on a domain below which a probe says nothing."""


class Flops(NamedTuple):
    """Useful FLOPs of learning all domains.

    Attributes:
      steps: of the steps, which a probe has a share of.
      measured: of what the method measures between domains, which a probe has whole.
    """

    steps: int
    measured: int


def flops_of(config: Config) -> Flops:
    """Of a run."""
    stages = stage_flops(config)
    return Flops(
        sum(stage.steps * stage.step for stage in stages), sum(stage.measured for stage in stages)
    )


class Pace(NamedTuple):
    """How fast this machine is, as short runs measured it; all in seconds.

    Attributes:
      per_flop: of a step.
      overhead: of a run besides its steps and what its method measures: compiling, held-out losses.
      warm_up: on general text, once for every seed.
      spent: on measuring this, the warm-up of the first seed included.
    """

    per_flop: float = 0.0
    overhead: float = 0.0
    warm_up: float = 0.0
    spent: float = 0.0


class Budget(NamedTuple):
    """What probes may take; one of the two.

    Attributes:
      minutes: on this machine.
      flops: useful ones of learning domains.
    """

    minutes: float | None = None
    flops: float | None = None

    def share_of_steps(
        self, share: float, flops: Sequence[Flops], pace: Pace, warm_ups: int = 0
    ) -> float:
        """The steps of probes, in those of the whole run, if they are to take a share of the budget.

        Args:
          share: of the budget.
          flops: of every probe, if it were the whole run.
          pace: of this machine; not needed for a budget in FLOPs.
          warm_ups: how many are still to be learned.
        """
        steps, measured = (sum(each) for each in zip(*flops, strict=True))
        if self.flops is not None:
            return (share * self.flops - measured) / steps
        assert self.minutes is not None
        seconds = share * (60 * self.minutes - pace.spent)
        seconds -= pace.overhead * len(flops) + pace.warm_up * warm_ups
        return (seconds / pace.per_flop - measured) / steps

    def __str__(self) -> str:
        return f"{self.minutes:g} minutes" if self.flops is None else f"{self.flops:.3g} FLOPs"


def steps_of(config: Config, share: float) -> list[int]:
    """The steps of a probe on every domain; never more than the run has."""
    full = [domain.steps or config.training.steps for domain in config.domains]
    return [max(0, round(min(share, 1.0) * steps)) for steps in full]


def check_steps(steps: Sequence[int], whole: Sequence[int], probes: int, budget: Budget) -> None:
    """Raises UserError if probes would be too short, on a domain that has more steps.

    Args:
      steps: of a probe on every domain.
      whole: of the whole run.
      probes: how many there are.
      budget: what they may take.
    """
    short = [
        few for few, all_steps in zip(steps, whole, strict=True) if few < min(FEWEST, all_steps)
    ]
    if short:
        raise UserError(
            f"{budget} pay for {min(short)} steps on a domain in each of {probes} probes, and at least "
            f"{FEWEST} are needed; give more with --minutes or --flops, or try less with --candidates"
        )
