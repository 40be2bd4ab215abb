"""Means over seeds and differences paired by seed, with Student's t intervals; there are no others."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.stats

CONFIDENCE = 0.95
ROUNDING = 1e-12
"""Numbers that differ by no more than this share of their size are equal: subtraction rounds."""

NEGLIGIBLE = 0.0005
"""What three digits do not show."""

Samples = Literal["pre-training", "fine-tuning"]
Verdict = Literal["better", "worse", "unclear", ""]


class Estimate(NamedTuple):
    """A mean over samples and its 95 % interval; one sample alone has none.

    Equal samples have an interval without width: they agree, and show no noise to measure others by.
    """

    mean: float
    low: float | None
    high: float | None
    samples: int

    @property
    def half_width(self) -> float | None:
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    def __str__(self) -> str:
        """The mean, and half of the interval if there is one."""
        half = "" if self.half_width is None else f" ± {self.half_width:.3f}"
        return f"{self.mean:.3f}{half}"

    def interval(self, sign: Literal["-", "+"] = "-") -> str:
        """The interval's ends, with a plus if `sign` is one; empty if there is no interval."""
        return "" if self.low is None else f"[{self.low:{sign}.3f}, {self.high:{sign}.3f}]"

    def verdict(self, larger_is_better: bool) -> Verdict:
        """What to think of a difference: `unclear` where its interval includes zero, so that it may be
        chance; nothing where three digits show neither difference nor interval.
        """
        if max(abs(self.mean), self.half_width or 0.0) < NEGLIGIBLE:
            return ""
        if self.low is not None and self.high is not None and self.low <= 0 <= self.high:
            return "unclear"
        return self.direction(larger_is_better)

    def direction(self, larger_is_better: bool) -> Verdict:
        """What the mean of a difference alone says, by chance or not."""
        if abs(self.mean) < NEGLIGIBLE:
            return ""
        return "better" if (self.mean > 0) == larger_is_better else "worse"


def estimate(samples_N: npt.ArrayLike) -> Estimate:
    """The mean and its Student's t interval: t of N - 1 degrees of freedom times the standard error."""
    values_N = np.asarray(samples_N, np.float64)
    return _students_t(values_N, ROUNDING * float(np.abs(values_N).max()))


def paired_difference(first_N: npt.ArrayLike, second_N: npt.ArrayLike) -> Estimate:
    """The mean of `first - second` and its Student's t interval.

    Sample n of both must be of the same seed: what a seed does to both is no noise of their difference.
    """
    first_N, second_N = np.asarray(first_N, np.float64), np.asarray(second_N, np.float64)
    rounding = ROUNDING * float(np.abs([first_N, second_N]).max())
    return _students_t(first_N - second_N, rounding)


def _students_t(values_N: np.ndarray, rounding: float) -> Estimate:
    count = len(values_N)
    mean = float(values_N.mean())
    mean = 0.0 if abs(mean) <= rounding else mean
    if count < 2:
        return Estimate(mean, None, None, count)
    spread = float(values_N.std(ddof=1))
    half = 0.0 if spread <= rounding else standard_errors(count) * spread / float(np.sqrt(count))
    return Estimate(mean, mean - half, mean + half, count)


def standard_errors(count: int) -> float:
    """Half of the interval of a mean over so many samples, at least 2, in standard errors."""
    return float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, count - 1))


def samples_note(samples: Samples, seeds: Sequence[int]) -> str:
    """What means and intervals in a table are taken over, as a sentence or two to stand below it."""
    named = f"{samples} seed{'s' if len(seeds) > 1 else ''} ({', '.join(map(str, seeds))})"
    if len(seeds) == 1:
        return f"One {named}, so there are no intervals."
    note = (
        f"Means over {len(seeds)} {named}; 95 % intervals are Student's t, "
        f"± {standard_errors(len(seeds)):.2f} standard errors, without width where all seeds agree."
    )
    if samples == "fine-tuning":
        note += " All are of one pre-training seed; they say nothing of another."
    return note
