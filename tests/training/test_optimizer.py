from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from das_jax.config.schema import TrainingSettings
from das_jax.errors import UserError
from das_jax.methods.contract import Transforms
from das_jax.model.language_model import Params
from das_jax.model.units import parameter_paths
from das_jax.training.lion import Lion
from das_jax.training.muon import COEFFICIENTS, ITERATIONS, Muon
from das_jax.training.optimizer import Optimizer, OptimizerState, adamw, carry, domain_optimizer
from das_jax.training.schedules import Linear

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
    schedule = Linear(0.1, 6, 0.5)
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


def test_a_gradient_is_clipped_before_it_is_masked() -> None:
    """Of a larger norm it is scaled down to it, a smaller one is taken as it is."""
    plain = Optimizer(optax.identity(), lambda step: 1.0)
    norms = np.linalg.norm(GRADIENTS, axis=1)
    limit = float(np.median(norms))
    half = Transforms(gradient=optax.scale(0.5))
    clipped = GRADIENTS * np.minimum(1, limit / norms)[:, None]
    moved = learned(replace(plain, clip=limit), half)
    np.testing.assert_allclose(moved, np.arange(5) - clipped.sum(axis=0) / 2, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("second_moment", ["fresh", "carried"])
def test_a_piece_of_the_first_moment_alone_is_the_movement_but_for_the_decay(
    second_moment: str,
) -> None:
    """Adam's direction is in proportion to its first moment: a constant factor there is what it says."""
    plain = Optimizer(adamw(0.9, 0.999, 1e-12, 0.0, second_moment=second_moment), lambda step: 0.1)
    whole = learned(plain) - np.arange(5)
    quarter = learned(plain, Transforms(first_moment=optax.scale(0.25))) - np.arange(5)
    np.testing.assert_allclose(quarter, whole / 4, atol=1e-6)
    both = Transforms(gradient=optax.scale(100.0), first_moment=optax.scale(0.25))
    np.testing.assert_allclose(learned(plain, both) - np.arange(5), whole / 4, atol=1e-6)
    decaying = Optimizer(adamw(0.9, 0.999, 1e-8, 0.5), lambda step: 0.1)
    nothing = Transforms(first_moment=optax.set_to_zero())
    np.testing.assert_allclose(learned(decaying, nothing), np.arange(5) * 0.95**6, rtol=1e-5)


def test_it_is_lion_by_hand() -> None:
    found = learned(Optimizer(Lion(0.9, 0.99, 0.3), Linear(0.1, 6, 0.5)))
    w, m = np.arange(5.0), np.zeros(5)
    for step, gradient in enumerate(GRADIENTS.astype(np.float64)):
        u = np.sign(0.9 * m + 0.1 * gradient)
        m = 0.99 * m + 0.01 * gradient
        w = w - float(Linear(0.1, 6, 0.5)(step)) * (u + 0.3 * w)
    np.testing.assert_allclose(found, w, rtol=1e-5)
    with pytest.raises(TypeError, match="first_moment"):
        learned(
            Optimizer(Lion(0.9, 0.99, 0.0), lambda step: 0.1),
            Transforms(first_moment=optax.identity()),
        )


def orthogonalised(x: np.ndarray) -> np.ndarray:
    """Of one matrix, through its singular values."""
    a, b, c = COEFFICIENTS
    u, s, v = np.linalg.svd(x, full_matrices=False)
    s /= np.linalg.norm(s)
    for _ in range(ITERATIONS):
        s = a * s + b * s**3 + c * s**5
    return (u * s) @ v


def test_muon_turns_the_matrices_of_layers_and_leaves_all_else_to_adam(params: Params) -> None:
    """Heads are rows or columns of one matrix, as they stand before or after the arrow; layers are apart."""
    steps = [
        jax.tree.map(lambda x, key=key: jax.random.normal(key, x.shape), params)
        for key in jax.random.split(jax.random.key(1), 2)
    ]
    muon, adam = Muon(0.9, 0.2, 0.9, 0.999, 1e-8, 0.5), adamw(0.9, 0.999, 1e-8, 0.5)
    states = muon.init(params), adam.init(params)
    update = jax.jit(
        lambda gradients, a, b: (
            muon.update(gradients, a, params),
            adam.update(gradients, b, params),
        )
    )
    for gradients in steps:
        (found, of_muon), (by_adam, of_adam) = update(gradients, *states)
        states = of_muon, of_adam
    shapes = {
        "layers/attention/query/kernel": (2, 16, 16),
        "layers/attention/key/kernel": (2, 16, 16),
        "layers/attention/value/kernel": (2, 16, 16),
        "layers/attention/output/kernel": (2, 16, 16),
        "layers/feed_forward/intermediate/kernel": (2, 16, 24),
        "layers/feed_forward/output/kernel": (2, 24, 16),
    }
    assert parameter_paths(of_muon[0].mu) == sorted(shapes)
    trees = params, *steps, found, by_adam
    for path, *arrays in zip(parameter_paths(params), *map(jax.tree.leaves, trees), strict=True):
        before, first, second, moved, adams = (np.asarray(x, np.float64) for x in arrays)
        if path not in shapes:
            np.testing.assert_array_equal(moved, adams, path)
            continue
        mean = 0.1 * (0.9 * first + second)
        ahead = 0.9 * mean / (1 - 0.9**3) + 0.1 * second / (1 - 0.9**2)
        for layer, x in enumerate(ahead.reshape(shapes[path])):
            wanted = 0.2 * np.sqrt(max(x.shape)) * orthogonalised(x)
            got = moved[layer].reshape(x.shape) - 0.5 * before[layer].reshape(x.shape)
            np.testing.assert_allclose(got, wanted, atol=2e-5, err_msg=path)
            assert np.sqrt(np.mean(got**2)) == pytest.approx(0.2, rel=0.25), path


def test_equal_settings_are_equal_optimizers() -> None:
    """Compiled steps are kept by the optimizer: equal ones must share a step, unequal ones must not."""

    def made(steps: int = 10, first: bool = True, **options: Any) -> Optimizer:
        return domain_optimizer(TrainingSettings(**options), steps, first=first)

    infinite = {"schedule": "infinite", "cooldown": 0.25}
    unequal = [
        made(),
        made(11),
        made(b2=0.99),
        made(schedule="constant"),
        made(schedule="cosine"),
        made(schedule="rewarmed"),
        made(**infinite),
        made(first=False, **infinite),
        made(trunk=False, **infinite),
        made(second_moment="carried"),
        made(optimizer="lion"),
        made(optimizer="lion", b2=0.999),
        made(optimizer="muon"),
        made(optimizer="muon", rms=0.1),
        domain_optimizer(TrainingSettings(), 10, learning_rate=0.5),
        domain_optimizer(TrainingSettings(), 10, decays=(("b", True), (".*", False))),
    ]
    assert len({*unequal}) == len(unequal)
    usual = made(steps=10, b1=0.9, b2=0.999), made(optimizer="lion", b2=0.99)
    assert {*unequal} == {*unequal, made(), *usual, made(first=False)}


def test_weight_decay_pulls_what_its_rules_say() -> None:
    decays = ((".*/bias", False), ("frozen/.*", False), (".*", True))
    optimizer = adamw(0.9, 0.999, 1e-8, 0.5, decays=decays)
    params = {
        "frozen": {"kernel": jnp.ones(2)},
        "free": {"kernel": jnp.ones(2), "bias": jnp.ones(2)},
    }
    zeros = jax.tree.map(jnp.zeros_like, params)
    moved, _ = optimizer.update(zeros, optimizer.init(params), params)
    found = {
        path: float(x[0])
        for path, x in zip(parameter_paths(moved), jax.tree.leaves(moved), strict=True)
    }
    assert found == {"free/bias": 0, "free/kernel": 0.5, "frozen/kernel": 0}
    with pytest.raises(ValueError, match=r"no rule of .* claims the parameter 'free/bias'"):
        adamw(0.9, 0.999, 1e-8, 0.5, decays=((".*/kernel", True),)).init(params)


def carried(
    domains: list[np.ndarray], second_moment: str
) -> tuple[list[np.ndarray], OptimizerState]:
    """The directions of every step of domains that hand on their second moment."""
    optimizer = Optimizer(
        adamw(0.8, 0.95, 1e-6, 0.0, second_moment=second_moment), Linear(1.0, 6, 0.0)
    )
    params, directions, state = {"w": jnp.zeros(5)}, [], None
    for gradients in domains:
        fresh = optimizer.init(params, Transforms())
        state = fresh if state is None else carry(state.second_moment, fresh)
        for step, gradient in enumerate(gradients):
            _, state, trace = optimizer.update(
                {"w": jnp.asarray(gradient)}, state, params, Transforms(), jnp.int32(step)
            )
            directions.append(np.asarray(trace.finished["w"]))
    return directions, state


def test_a_carried_second_moment_is_that_of_all_domains_and_the_first_is_not() -> None:
    domains = [GRADIENTS[:4], 3 * GRADIENTS[4:], GRADIENTS[2:5]]
    found, state = carried(domains, "carried")
    b1, b2, nu, steps, expected = 0.8, 0.95, 0.0, 0, []
    for gradients in domains:
        mu = 0.0
        for own, gradient in enumerate(gradients.astype(np.float64), start=1):
            steps += 1
            mu = b1 * mu + (1 - b1) * gradient
            nu = b2 * nu + (1 - b2) * gradient**2
            corrected = mu / (1 - b1**own), nu / (1 - b2**steps)
            expected.append(corrected[0] / (np.sqrt(corrected[1]) + 1e-6))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(state.second_moment.nu["w"], nu, rtol=1e-5)
    assert int(state.second_moment.steps) == steps == 9


def test_the_first_domain_is_the_same_whether_its_second_moment_is_carried_on() -> None:
    fresh, state = carried([GRADIENTS], "fresh")
    np.testing.assert_array_equal(fresh, carried([GRADIENTS], "carried")[0])
    assert int(state.second_moment.steps) == 6


def test_a_second_moment_of_other_parameters_is_refused() -> None:
    optimizer = domain_optimizer(TrainingSettings(second_moment="carried"), 10)
    one, other = (
        optimizer.init(params, Transforms())
        for params in ({"a": jnp.ones(2), "b": jnp.ones(2)}, {"a": jnp.ones(2), "b": jnp.ones(3)})
    )
    match = r"^training\.second_moment is carried, .* different parameters \(b\); set it to fresh$"
    with pytest.raises(UserError, match=match):
        carry(one.second_moment, other)


def test_a_domain_that_trains_less_carries_on_what_it_trains() -> None:
    optimizer = domain_optimizer(TrainingSettings(second_moment="carried"), 10)
    more, less = (
        optimizer.init({name: jnp.ones(2) for name in names}, Transforms()) for names in ("ab", "b")
    )
    nu = {"a": jnp.ones(2), "b": jnp.arange(2.0)}
    found = carry(more.second_moment._replace(nu=nu, steps=jnp.int32(7)), less).second_moment
    assert found.nu.keys() == {"b"}
    np.testing.assert_array_equal(found.nu["b"], [0, 1])
    assert int(found.steps) == 7
