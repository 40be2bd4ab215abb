import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from das_jax.config.schema import TrainingSettings
from das_jax.methods.contract import Transforms
from das_jax.training.optimizer import (
    Optimizer,
    adamw,
    domain_optimizer,
    warmup_linear_decay,
)


def test_the_schedule_rises_falls_and_never_rests() -> None:
    schedule = warmup_linear_decay(peak=2.0, steps=10, warmup=0.4)
    rates = [float(schedule(step)) for step in range(10)]
    np.testing.assert_allclose(rates, np.array([3, 6, 9, 12, 12, 10, 8, 6, 4, 2]) / 6, rtol=1e-6)
    assert float(schedule(10)) == 0


@pytest.mark.parametrize("warmup", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 2500])
def test_no_step_of_any_schedule_has_no_rate(steps: int, warmup: float) -> None:
    rates = jax.vmap(warmup_linear_decay(1e-4, steps, warmup))(jnp.arange(steps))
    assert (rates > 0).all()
    assert rates.max() == pytest.approx(1e-4)
    rising = round(steps * warmup)
    assert (jnp.diff(rates[:rising]) > 0).all()
    assert (jnp.diff(rates[rising:]) < 0).all()


SCALES = np.array([1, 1e-3, 0, 10, 1e-6])
GRADIENTS = (np.random.default_rng(0).normal(size=(6, 5)) * SCALES).astype(np.float32)


def learned(optimizer: Optimizer, transforms: Transforms = Transforms()) -> np.ndarray:  # noqa: B008
    params = {"w": jnp.arange(5.0)}
    state = optimizer.init(params, transforms)
    for step, gradient in enumerate(GRADIENTS):
        params, state, _ = optimizer.update(
            {"w": jnp.asarray(gradient)}, state, params, transforms, jnp.int32(step)
        )
    return np.asarray(params["w"])


def test_it_is_adamw() -> None:
    schedule = warmup_linear_decay(0.1, 6, 0.5)
    ours = learned(Optimizer(adamw(0.8, 0.95, 1e-6, 0.3), schedule))

    reference = optax.adamw(schedule, b1=0.8, b2=0.95, eps=1e-6, weight_decay=0.3)
    params = {"w": jnp.arange(5.0)}
    state = reference.init(params)
    weight = torch.nn.Parameter(torch.arange(5.0))
    theirs = torch.optim.AdamW([weight], lr=0.0, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.3)
    for step, gradient in enumerate(GRADIENTS):
        updates, state = reference.update({"w": gradient}, state, params)
        params = optax.apply_updates(params, updates)
        theirs.param_groups[0]["lr"] = float(schedule(step))
        weight.grad = torch.from_numpy(gradient)
        theirs.step()
    np.testing.assert_allclose(ours, params["w"], rtol=1e-5)
    np.testing.assert_allclose(ours, weight.detach().numpy(), rtol=1e-5)


def test_the_update_piece_scales_the_decay_too_and_the_gradient_piece_does_not() -> None:
    """With a mask of 0 nothing moves after Adam; before Adam the weights still decay."""
    optimizer = Optimizer(adamw(0.9, 0.999, 1e-8, 0.5), lambda step: 0.1)
    nothing = optax.set_to_zero()
    np.testing.assert_array_equal(
        learned(optimizer, Transforms(update=nothing)), np.arange(5.0, dtype=np.float32)
    )
    np.testing.assert_allclose(
        learned(optimizer, Transforms(gradient=nothing)), np.arange(5.0) * 0.95**6, rtol=1e-5
    )


def test_half_the_update_is_half_the_movement_and_half_the_gradient_is_not() -> None:
    """Why the mask may stand after Adam: there a constant factor is what it says."""
    optimizer = Optimizer(adamw(0.9, 0.999, 1e-12, 0.0), lambda step: 0.1)
    whole = learned(optimizer) - np.arange(5)
    half = Transforms(update=optax.scale(0.5))
    np.testing.assert_allclose(learned(optimizer, half) - np.arange(5), whole / 2, atol=1e-6)
    half = Transforms(gradient=optax.scale(0.5))
    np.testing.assert_allclose(learned(optimizer, half) - np.arange(5), whole, atol=1e-6)


def test_equal_domains_share_an_optimizer() -> None:
    settings = TrainingSettings(steps=10, learning_rate=0.5)
    assert domain_optimizer(settings, 10) is domain_optimizer(
        TrainingSettings(steps=10, learning_rate=0.5), 10
    )
    assert domain_optimizer(settings, 10) is not domain_optimizer(settings, 11)
    assert float(domain_optimizer(settings, 10).schedule(0)) == 0.5
