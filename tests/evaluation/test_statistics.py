import numpy as np
import pytest

from das_jax.evaluation.statistics import estimate, paired_difference


def test_the_interval_is_students() -> None:
    # Mean 2, standard error 1 / sqrt(3), t at 97.5 % with two degrees of freedom 4.3027.
    result = estimate(np.array([1.0, 2.0, 3.0]))
    assert result.mean == 2.0
    assert result.half_width == pytest.approx(4.30265 / np.sqrt(3), rel=1e-5)
    assert (result.low, result.high) == pytest.approx(
        (2 - 4.30265 / np.sqrt(3), 2 + 4.30265 / np.sqrt(3)), rel=1e-5
    )


def test_one_sample_has_no_interval() -> None:
    assert estimate(np.array([0.5])) == (0.5, None, None, 1)
    assert paired_difference(np.array([0.5]), np.array([0.25])) == (0.25, None, None, 1)


def test_pairs_take_away_what_the_seeds_have_in_common() -> None:
    common = np.array([0.0, 10.0, -7.0, 3.0, 5.0])
    result = paired_difference(common + np.array([1.0, 1.1, 0.9, 1.0, 1.0]), common)
    assert result.mean == pytest.approx(1.0)
    assert result.low is not None
    assert 0.9 <= result.low < 1.0 < result.high <= 1.1
    assert paired_difference(common + 1, common) == pytest.approx((1.0, 1.0, 1.0, 5))


def test_of_three_seeds_the_interval_is_their_range() -> None:
    result = paired_difference(np.array([1.0, 2.0, 6.0]), np.zeros(3))
    assert result == pytest.approx((3.0, 1.0, 6.0, 3))
