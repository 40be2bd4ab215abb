"""Means over seeds with their uncertainty."""

from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.stats

CONFIDENCE = 0.95
RESAMPLES = 10_000


class Estimate(NamedTuple):
    """A mean over samples and its 95 % interval; one sample alone has none."""

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


def estimate(samples_N: npt.ArrayLike) -> Estimate:
    """The mean and Student's t interval."""
    values_N = np.asarray(samples_N, np.float64)
    mean, count = float(values_N.mean()), len(values_N)
    if count < 2:
        return Estimate(mean, None, None, count)
    error = float(values_N.std(ddof=1)) / np.sqrt(count)
    half = float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * error
    return Estimate(mean, float(mean - half), float(mean + half), count)


def paired_difference(first_N: npt.ArrayLike, second_N: npt.ArrayLike) -> Estimate:
    """The mean of `first - second` and its interval by the paired percentile bootstrap over samples.

    Sample n of both must be of the same seed. Few seeds give few different resamples: with three of them
    the interval is the range of the three differences.
    """
    difference_N = np.asarray(first_N, np.float64) - np.asarray(second_N, np.float64)
    mean, count = float(difference_N.mean()), len(difference_N)
    if count < 2:
        return Estimate(mean, None, None, count)
    interval = scipy.stats.bootstrap(
        (difference_N,),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Estimate(mean, float(interval.low), float(interval.high), count)
