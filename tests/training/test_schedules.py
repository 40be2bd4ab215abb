"""Learning rates: against an independent implementation, and what each schedule promises."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from das_jax.config.schema import TrainingSettings
from das_jax.training.optimizer import domain_optimizer
from das_jax.training.schedules import (
    WSD,
    Annealed,
    Constant,
    Cosine,
    Infinite,
    Linear,
    Schedule,
)


def rates(schedule: Schedule) -> np.ndarray:
    """Of all steps of a domain, as the compiled step has them."""
    return np.asarray(jax.jit(jax.vmap(schedule))(jnp.arange(schedule.steps)))


def test_linear_rises_falls_and_never_rests() -> None:
    schedule = Linear(peak=2.0, steps=10, warmup=0.4)
    expected = np.array([3, 6, 9, 12, 12, 10, 8, 6, 4, 2]) / 6
    np.testing.assert_allclose(rates(schedule), expected, rtol=1e-6)
    assert float(schedule(10)) == 0


@pytest.mark.parametrize("warmup", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 2500])
def test_no_step_of_a_linear_schedule_has_no_rate(steps: int, warmup: float) -> None:
    found = rates(Linear(1e-4, steps, warmup))
    assert (found > 0).all()
    assert found.max() == pytest.approx(1e-4)
    rising = round(steps * warmup)
    assert (np.diff(found[:rising]) > 0).all()
    assert (np.diff(found[rising:]) < 0).all()


INFINITE = {"schedule": "infinite", "settling": 0.3, "constant": 0.5, "cooldown": 0.2, "floor": 0.1}
GOLDEN: dict[str, tuple[dict[str, Any], bool]] = {
    "rewarm": ({"schedule": "rewarmed", "floor": 0.1}, True),
    "infinite_first": (INFINITE, True),
    "infinite_later": (INFINITE, False),
    "wsd": ({"schedule": "wsd", "cooldown": 0.2}, True),
}


@pytest.mark.parametrize(("x64", "tolerance"), [(False, 1e-5), (True, 1e-9)])
def test_rates_are_those_of_the_golden_arrays(
    systems: Any, arch: str, x64: bool, tolerance: float
) -> None:
    golden = systems(arch).arrays("policies")
    for name, (options, first) in GOLDEN.items():
        expected = golden[f"lr.{name}"]
        settings = TrainingSettings(learning_rate=1.0, warmup=0.1, **options)
        with jax.enable_x64(x64):
            found = rates(domain_optimizer(settings, len(expected), first=first).schedule)
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance, err_msg=name)


SCHEDULES = [
    Linear(3.0, 7, 0.3),
    Cosine(3.0, 7, 0.3),
    Cosine(3.0, 7, 0.3, 0.2),
    Constant(3.0, 7, 0.3),
    WSD(3.0, 7, 0.3, cooldown=0.3),
    Infinite(3.0, 7, 0.3, 0.3, 0.5, 0.1, cooldown=0.3),
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda each: type(each).__name__)
def test_every_schedule_warms_up_alike_and_never_rises_again(schedule: Schedule) -> None:
    found = rates(schedule)
    np.testing.assert_allclose(found[:2], [1.5, 3.0], rtol=1e-6)
    assert (np.diff(found[2:]) <= 0).all()
    assert (found[:-1] > 0).all()


def test_cosine_falls_to_its_floor_and_constant_nowhere() -> None:
    cosine = Cosine(2.0, 8, 0.0, 0.25)
    assert [float(cosine(step)) for step in (0, 4, 8, 99)] == pytest.approx([2, 1.25, 0.5, 0.5])
    np.testing.assert_array_equal(rates(Constant(2.0, 5, 0.0)), 2.0)


@pytest.mark.parametrize("cooldown", [0.0, 0.5])
def test_later_domains_go_on_at_the_constant_rate(cooldown: float) -> None:
    later = Infinite(2.0, 8, 0.25, 0.5, 0.5, 0.01, cooldown=cooldown).of_later_domains()
    expected = np.r_[[1.0] * 4, [1.0] * 4 if cooldown == 0 else 0.01 ** (np.arange(1, 5) / 4)]
    np.testing.assert_allclose(rates(later), expected, rtol=1e-6)
    linear = SCHEDULES[0]
    assert linear.of_later_domains() == linear


def test_a_recovery_has_a_rise_and_a_fall_of_its_own() -> None:
    options = {"warmup": 0.25, "learning_rate": 2.0, "schedule": "wsd", "cooldown": 0.25}
    settings = TrainingSettings(**options)
    found = domain_optimizer(settings, 12, first=False, recovery=4).schedule
    then = domain_optimizer(settings, 8, first=False).schedule
    expected = np.r_[rates(Linear(2.0, 4, 0.25)), rates(then)]
    np.testing.assert_array_equal(jax.vmap(found)(jnp.arange(12)), expected)
    assert found.branches_at == 4 + then.branches_at
    linear = domain_optimizer(TrainingSettings(), 12, first=False, recovery=4).schedule
    assert linear.branches_at is None


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_domain_too_short_for_its_phases_takes_as_many_as_fit(steps: int) -> None:
    """Phases are rounded to whole steps, and may round up to more than there are."""
    for schedule in (
        WSD(1.0, steps, 0.5, cooldown=0.5),
        Infinite(1.0, steps, 0.5, 0.25, 0.5, 0.1, cooldown=0.5),
    ):
        found = rates(schedule)
        assert np.isfinite(found).all()
        assert ((found >= 0) & (found <= 1)).all()
        assert schedule.branches_at in (None, *range(schedule.settled, steps))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda each: type(each).__name__)
def test_a_branch_begins_with_the_first_step_below_the_constant_rate(schedule: Schedule) -> None:
    branch = schedule.branches_at
    if not isinstance(schedule, Annealed):
        assert branch is None
        return
    assert branch == 5
    for each in (schedule, schedule.of_later_domains()):
        found = rates(each)
        np.testing.assert_array_equal(found[schedule.settled : branch], found[branch - 1])
        assert found[branch] < found[branch - 1]
    assert dataclasses.replace(schedule, trunk=False).branches_at is None
    assert dataclasses.replace(schedule, cooldown=0.05).branches_at is None, "of no whole step"
    whole = dataclasses.replace(schedule, warmup=0.0, cooldown=1.0)
    assert whole.branches_at == whole.settled
