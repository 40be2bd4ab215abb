"""Which point is recommended, and how long probes may be."""

from typing import Any

import pytest

from das_jax.advising.budget import Budget, Flops, Pace, check_steps
from das_jax.advising.recommendation import Probe, finalists, frontier_of, recommend
from das_jax.errors import UserError
from das_jax.evaluation.statistics import Estimate, estimate


def probe(name: str, domains: float, rise: float, flops: float = 1.0, noise: float = 0.0) -> Probe:
    measured: Any = name
    rises: Estimate = estimate([rise - noise, rise, rise + noise])
    return Probe(measured, estimate([domains, domains, domains]), rises, flops)


BOLD = probe("bold", 4.0, 0.5)
MIDDLE = probe("middle", 4.3, 0.125)
WORSE = probe("worse", 4.5, 0.25)
CAREFUL = probe("careful", 5.0, 0.0)
DEAR = probe("dear", 4.1, 0.125, flops=2.0)
ALL = [BOLD, MIDDLE, WORSE, CAREFUL]


def test_the_frontier_is_what_nothing_beats_in_both() -> None:
    assert frontier_of(ALL) == (CAREFUL, MIDDLE, BOLD)
    assert frontier_of([*ALL, DEAR]) == (CAREFUL, DEAR, BOLD)


def test_without_a_promise_all_texts_count_alike() -> None:
    assert recommend(ALL, 1, None).chosen is MIDDLE  # 4.425, bold 4.5, careful 5
    assert recommend(ALL, 3, None).chosen is BOLD  # 12.5, middle 13.025


@pytest.mark.parametrize(
    ("promise", "chosen", "kept"),
    [(0.6, BOLD, True), (0.2, MIDDLE, True), (0.1, CAREFUL, True)],
)
def test_a_promise_leaves_what_keeps_it_and_of_that_the_best(
    promise: float, chosen: Probe, kept: bool
) -> None:
    found = recommend(ALL, 2, promise)
    assert (found.chosen, found.kept) == (chosen, kept)


def test_finalists_have_what_may_be_recommended() -> None:
    """The cheap one that keeps the promise, too, though a dear one beats it in both losses."""
    better = probe("better", 4.2, 0.1, flops=4.0)
    assert MIDDLE not in frontier_of([*ALL, better])
    assert finalists([*ALL, better], 2, 0.2, 3) == [MIDDLE, better, CAREFUL]
    assert finalists([*ALL, better], 2, None, 3) == [CAREFUL, better, BOLD]
    assert finalists(ALL, 2, None, 2) == [CAREFUL, BOLD]
    assert finalists([BOLD], 2, 0.2, 3) == [BOLD]


def test_a_promise_is_kept_by_the_cheapest() -> None:
    assert recommend([DEAR, MIDDLE], 2, 0.2).chosen is MIDDLE
    assert recommend([DEAR, WORSE], 2, 0.2).chosen is DEAR


def test_an_interval_that_reaches_further_is_not_sure() -> None:
    """Student's t of three seeds: 4.30 standard errors."""
    noisy = probe("noisy", 4.0, 0.1, noise=0.1)
    assert noisy.most == pytest.approx(0.1 + 4.303 * 0.1 / 3**0.5, rel=1e-3)
    sure = recommend([noisy, MIDDLE], 2, 0.2)
    assert (sure.chosen, sure.kept) == (MIDDLE, True)
    likely = recommend([noisy, WORSE], 2, 0.2)
    assert (likely.chosen, likely.kept) == (noisy, False)
    assert "none at the end of its interval" in likely.why


def test_a_promise_that_nothing_keeps_is_said() -> None:
    found = recommend([BOLD, WORSE], 2, 0.1)
    assert (found.chosen, found.kept) == (WORSE, False)
    assert found.why.startswith("none of 2 points keeps general loss within 0.1 nats")


def test_flops_are_shared_by_what_the_whole_runs_would_need() -> None:
    """What is measured between domains does not become less with the steps."""
    runs = [Flops(100, 0), Flops(300, 6)]
    share = Budget(flops=50.0).share_of_steps(0.4, runs, Pace())
    assert share * (100.0 + 300.0) + 6.0 == pytest.approx(0.4 * 50.0)


def test_minutes_pay_for_what_is_not_steps_first() -> None:
    pace = Pace(per_flop=0.5, overhead=6.0, warm_up=5.0, spent=20.0)
    runs = [Flops(100, 0), Flops(300, 10)]
    share = Budget(minutes=2.0).share_of_steps(0.5, runs, pace, warm_ups=3)
    assert 0.5 * (share * 400.0 + 10.0) + 2 * 6.0 + 3 * 5.0 == pytest.approx(0.5 * 100.0)


def test_probes_that_say_nothing_are_refused() -> None:
    check_steps([10, 40], [100, 400], 9, Budget(minutes=3.0))
    check_steps([9, 40], [9, 40], 9, Budget(minutes=3.0))  # The run has no more.
    with pytest.raises(UserError, match=r"^3 minutes pay for 9 steps .* in each of 4 probes"):
        check_steps([9, 40], [90, 400], 4, Budget(minutes=3.0))
