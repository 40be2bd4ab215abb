"""The learning rate of a domain, step by step.

A schedule is a value: equal numbers make equal schedules, which share a compiled program. Its phases take
whole steps, k = 0 .. K - 1: a rise and the last part have at step k the rate at (k + 1) / K of the phase, so
the first step of a rise is not at 0; a cosine has the one at k / K.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class Schedule:
    """Rises linearly over the warm-up, to go on as a kind of schedule does.

    Attributes:
      peak: the highest rate.
      steps: of the domain.
      warmup: the share of them over which the rate rises; the first has peak / warm-up steps.
    """

    peak: float
    steps: int
    warmup: float

    def __call__(self, step: Any) -> jax.Array:
        """The rate of a step, counted from 0, []."""
        up = (step + 1) / max(self.rising, 1)
        return self.peak * jnp.where(step < self.rising, up, self.after_warmup(step))

    @property
    def rising(self) -> int:
        """The steps of the warm-up."""
        return round(self.steps * self.warmup)

    def after_warmup(self, step: Any) -> Any:
        """The rate as a share of the peak; meant for steps from `rising` on."""
        raise NotImplementedError

    def of_later_domains(self) -> "Schedule":
        """The schedule of a domain that another one came before."""
        return self

    @property
    def branches_at(self) -> int | None:
        """The step before which the next domain goes on; None if that is after the last one."""
        return None


@dataclass(frozen=True)
class Linear(Schedule):
    """Falls linearly towards 0, which step `steps` would reach: no step of the domain has a rate of 0."""

    def after_warmup(self, step: Any) -> Any:
        return jnp.clip((self.steps - step) / max(self.steps - self.rising, 1), 0, 1)


@dataclass(frozen=True)
class Cosine(Schedule):
    """Falls to 0, or to the share `floor` of the peak, as half a wave of a cosine.

    With a floor it is the re-warming of Ibrahim et al., "Simple and scalable strategies to continually
    pre-train large language models" (TMLR 2024).
    """

    floor: float = 0.0

    def after_warmup(self, step: Any) -> Any:
        return _half_wave(step - self.rising, self.steps - self.rising, self.floor)


@dataclass(frozen=True)
class Constant(Schedule):
    """Stays where the warm-up left it."""

    def after_warmup(self, step: Any) -> Any:
        return 1.0


@dataclass(frozen=True, kw_only=True)
class Annealed(Schedule):
    """Stays at a constant rate until the last part of the domain, over which it falls.

    Attributes:
      cooldown: the share of the steps that is the last part.
      trunk: whether the last part is a branch, which the next domain does not go on from.
    """

    cooldown: float
    trunk: bool = True

    @property
    def settled(self) -> int:
        """The steps before the constant rate."""
        return self.rising

    @property
    def _last(self) -> int:
        """The first step of the last part; `steps` if there is none."""
        return max(self.steps - round(self.steps * self.cooldown), self.settled)

    @property
    def branches_at(self) -> int | None:
        return self._last if self.trunk and self._last < self.steps else None

    def annealed(self, step: Any) -> Any:
        """How much of the last part is behind when a step has been taken: 0 before it, 1 at the last step."""
        return jnp.clip((step + 1 - self._last) / max(self.steps - self._last, 1), 0, 1)


@dataclass(frozen=True)
class WSD(Annealed):
    """Warm-up, stable, decay (Hu et al., "MiniCPM", 2024): constant, and 1 - sqrt over the last part, whose
    last step has a rate of 0 (Hägele et al., NeurIPS 2024).
    """

    def after_warmup(self, step: Any) -> Any:
        return 1 - jnp.sqrt(self.annealed(step))


@dataclass(frozen=True)
class Infinite(Annealed):
    """Settles at a constant rate, from which later domains start without another warm-up (Ibrahim et al.,
    TMLR 2024); the last part of every domain falls exponentially.

    Attributes:
      settling: the share of the steps, after the warm-up, over which the rate falls to the constant one, as
        half a wave of a cosine.
      constant: the constant rate, as a share of the peak.
      floor: where the last part ends, as a share of the constant rate.
    """

    settling: float
    constant: float
    floor: float

    @property
    def settled(self) -> int:
        return min(self.rising + self._settling, self.steps)

    @property
    def _settling(self) -> int:
        return round(self.steps * self.settling)

    def after_warmup(self, step: Any) -> Any:
        last = self.annealed(step)
        return _half_wave(step - self.rising, self._settling, self.constant) * self.floor**last

    def of_later_domains(self) -> "Infinite":
        return dataclasses.replace(self, warmup=0.0, settling=0.0)


@dataclass(frozen=True, kw_only=True)
class Recovering(Linear):
    """A linear schedule for the steps of a recovery, which are its `steps`; after them another begins.

    Attributes:
      then: the schedule of the steps that are left.
    """

    then: Schedule

    def __call__(self, step: Any) -> jax.Array:
        return jnp.where(step < self.steps, super().__call__(step), self.then(step - self.steps))

    @property
    def branches_at(self) -> int | None:
        branch = self.then.branches_at
        return None if branch is None else self.steps + branch


def _half_wave(step: Any, steps: int, low: float) -> Any:
    """From 1 to `low`, which step `steps` reaches and later ones keep."""
    if steps == 0:
        return low
    share = jnp.clip(step / steps, 0, 1)
    return low + (1 - low) * (1 + jnp.cos(jnp.pi * share)) / 2
