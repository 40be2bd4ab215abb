"""Means and differences over seeds, and what may be said of them."""

import numpy as np
import pytest
import scipy.stats

from das_jax.evaluation.statistics import Estimate, estimate, paired_difference, samples_note


def test_the_interval_is_students() -> None:
    # Mean 2, standard error 1 / sqrt(3), t at 97.5 % with two degrees of freedom 4.3027.
    result = estimate(np.array([1.0, 2.0, 3.0]))
    assert result.mean == 2.0
    assert result.half_width == pytest.approx(4.30265 / np.sqrt(3), rel=1e-5)
    assert (result.low, result.high) == pytest.approx(
        (2 - 4.30265 / np.sqrt(3), 2 + 4.30265 / np.sqrt(3)), rel=1e-5
    )


def test_two_pairs_that_agree_in_sign_show_nothing() -> None:
    """The difference of two seeds d1, d2 is (d1 + d2) / 2 +- 12.706 |d1 - d2| / 2, not their range."""
    naive, das = np.array([0.4041, 0.5015]), np.array([0.4081, 0.5028])
    result = paired_difference(naive, das)
    assert result.mean == pytest.approx(-0.00265)
    assert result.half_width == pytest.approx(12.7062 * 0.0027 / 2, rel=1e-4)
    assert f"{result.half_width:.3f}" == "0.017"
    assert result.interval("+") == "[-0.020, +0.015]"
    assert result.verdict(larger_is_better=True) == "unclear"


@pytest.mark.parametrize("count", [2, 3, 5, 20])
def test_means_and_paired_differences_have_the_interval_of_scipy(count: int) -> None:
    first, second = np.random.default_rng(count).normal(2, 0.3, (2, count))
    for result, samples in (
        (estimate(first), first),
        (paired_difference(first, second), first - second),
    ):
        expected = scipy.stats.t.interval(
            0.95, count - 1, loc=samples.mean(), scale=scipy.stats.sem(samples)
        )
        assert (result.low, result.high) == pytest.approx(expected, rel=1e-12)
        assert result.mean == pytest.approx(samples.mean())


def test_one_sample_has_no_interval() -> None:
    assert estimate(np.array([0.5])) == (0.5, None, None, 1)
    assert paired_difference(np.array([0.5]), np.array([0.25])) == (0.25, None, None, 1)


def test_pairs_take_away_what_the_seeds_have_in_common() -> None:
    common = np.array([0.0, 10.0, -7.0, 3.0, 5.0])
    result = paired_difference(common + np.array([1.0, 1.1, 0.9, 1.0, 1.0]), common)
    assert result.mean == pytest.approx(1.0)
    assert result.half_width == pytest.approx(2.7764 * np.sqrt(0.02 / 4 / 5), rel=1e-4)


def test_what_rounding_leaves_is_no_difference_and_no_noise() -> None:
    """Pairs of equal differences, which subtraction makes unequal by 1e-17 to 1e-15."""
    common = np.array([0.0, 10.3, -7.1, 3.0, 0.7])
    assert paired_difference(common + 0.1, common) == pytest.approx((0.1, 0.1, 0.1, 5), rel=1e-12)
    equal = paired_difference(common + 0.1 + 0.2, common + 0.3)
    assert equal == (0.0, 0.0, 0.0, 5)
    assert estimate([0.1] * 3).half_width == 0.0


@pytest.mark.parametrize(
    ("difference", "verdict"),
    [
        (Estimate(0.02, 0.01, 0.03, 3), "better"),
        (Estimate(-0.02, -0.03, -0.01, 3), "worse"),
        (Estimate(0.02, -0.01, 0.05, 3), "unclear"),
        (Estimate(0.0001, -0.02, 0.0202, 3), "unclear"),
        (Estimate(0.0, 0.0, 0.0, 3), ""),
        (Estimate(0.0004, 0.0004, 0.0004, 3), ""),
        (Estimate(0.02, None, None, 1), "better"),
        (Estimate(-0.0004, None, None, 1), ""),
    ],
)
def test_a_difference_counts_if_its_interval_leaves_out_zero(
    difference: Estimate, verdict: str
) -> None:
    assert difference.verdict(larger_is_better=True) == verdict
    other = {"better": "worse", "worse": "better"}.get(verdict, verdict)
    assert difference.verdict(larger_is_better=False) == other


def test_notes_name_the_samples_and_the_interval() -> None:
    assert (
        samples_note("pre-training", [3]) == "One pre-training seed (3), so there are no intervals."
    )
    assert samples_note("pre-training", [0, 2]).startswith(
        "Means over 2 pre-training seeds (0, 2); 95 % intervals are Student's t, ± 12.71 standard errors"
    )
    assert "they say nothing of another" in samples_note("fine-tuning", [0, 1])
