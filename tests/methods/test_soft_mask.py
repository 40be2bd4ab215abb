import doctest
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from das_jax.methods import soft_mask as module
from das_jax.methods.soft_mask import (
    OVERLAP_DECAY,
    adaptive_soft_mask,
    effective_mask,
    soft_mask,
)
from das_jax.model.language_model import LanguageModel, Params
from das_jax.model.leaves import OWNERS, owners_of
from das_jax.model.units import Owner, full_units, unit_shapes


def test_its_example_runs() -> None:
    result = doctest.testmod(module)
    assert result.attempted > 5
    assert result.failed == 0


def test_every_parameter_of_the_model_is_claimed_by_the_units_that_feed_it(
    model: LanguageModel, params: Params
) -> None:
    shapes = unit_shapes(model.architecture)
    owned = 0
    for leaf, owner in zip(jax.tree.leaves(params), owners_of(params), strict=True):
        if owner is not None:
            assert tuple(leaf.shape[axis] for axis in owner.axes) == shapes[owner.kind]
            owned += 1
    # Query, key, value and two feed-forward projections, weights and biases, and the output projection.
    assert owned == 11


def test_a_parameter_nobody_claims_is_refused_by_name(model: LanguageModel, params: Params) -> None:
    params = params | {"adapter": {"kernel": jnp.ones((2, 4))}}
    with pytest.raises(ValueError, match="adapter/kernel"):
        soft_mask(full_units(model.architecture, 0.5)).init(params)


def test_each_unit_scales_its_own_rows_and_no_others(model: LanguageModel, params: Params) -> None:
    params = jax.tree.map(np.ones_like, params)
    for kind, shape in unit_shapes(model.architecture).items():
        importance = full_units(model.architecture, 0.0)
        layer, unit = shape[0] - 1, shape[1] - 1
        one_hot = getattr(importance, kind).at[layer, unit].set(1.0)
        transform = soft_mask(importance._replace(**{kind: one_hot}))
        masked, _ = transform.update(params, transform.init(params))
        for leaf, owner in zip(jax.tree.leaves(masked), owners_of(params), strict=True):
            expected = np.ones(leaf.shape)
            if owner is not None and owner.kind == kind:
                index = [slice(None)] * leaf.ndim
                for axis, value in zip(owner.axes, (layer, unit), strict=True):
                    index[axis] = value
                expected[tuple(index)] = 0
            np.testing.assert_array_equal(leaf, expected)


def test_adam_undoes_a_mask_on_the_gradient_but_not_one_on_the_update() -> None:
    """Row 9 of the fidelity table."""
    factors = np.array([1.0, 0.5, 0.1, 0.0], np.float32)
    rules = [("w", Owner("rows", (0,)))]
    gradients = {"w": jax.random.normal(jax.random.key(0), (100, 4, 500))}

    def movement(*pieces: optax.GradientTransformation) -> np.ndarray:
        optimizer = optax.chain(*pieces)
        params = {"w": jnp.zeros((4, 500))}

        def step(carry, gradient):
            params, state = carry
            updates, state = optimizer.update(gradient, state)
            return (optax.apply_updates(params, updates), state), None

        (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), gradients)
        return np.linalg.norm(params["w"], axis=1)

    mask = soft_mask({"rows": 1 - factors}, rules)
    before = movement(mask, optax.scale_by_adam())
    after = movement(optax.scale_by_adam(), mask)
    np.testing.assert_allclose(before[:3] / before[0], 1, atol=0.15)
    assert before[3] == 0
    np.testing.assert_allclose(after / after[0], factors, atol=0.06)


def test_an_adaptive_mask_is_as_strong_as_the_overlap() -> None:
    rules = [("w", Owner("rows", (0,))), ("free", None)]
    mask = adaptive_soft_mask({"rows": np.array([0.0, 1.0])}, rules)

    def update(w: list[float], state: Any) -> tuple[np.ndarray, Any]:
        gradients = {"w": jnp.array(w)[:, None], "free": jnp.full(3, 100.0)}
        masked, state = mask.update(gradients, state)
        np.testing.assert_array_equal(masked["free"], 100)
        return masked["w"][:, 0], state

    start = mask.init({"w": jnp.ones((2, 1)), "free": jnp.ones(3)})
    assert start.strength == 0
    # All on what is free; all on what is protected; at an angle whose cosine is 0.8; nowhere.
    for w, expected in (
        ([2.0, 0.0], [2.0, 0.0]),
        ([0.0, 2.0], [0.0, 0.0]),
        ([3.0, 4.0], [3.0, 0.8]),
        ([0.0, 0.0], [0.0, 0.0]),
    ):
        np.testing.assert_allclose(update(w, start)[0], expected, atol=1e-5)
    masked, state = update([3.0, 4.0], update([0.0, 2.0], start)[1])
    mean = (OVERLAP_DECAY * 1.0 + 0.8) / (OVERLAP_DECAY + 1)
    np.testing.assert_allclose(state.strength, mean, rtol=1e-5)
    np.testing.assert_allclose(masked, [3.0, 4 * (1 - mean)], rtol=1e-4)


def test_effective_mask_is_one_without_a_mask_and_the_factor_with_a_constant_one(
    model: LanguageModel, params: Params
) -> None:
    for importance, expected in ((0.0, 1.0), (0.75, 0.25)):
        transform = soft_mask(full_units(model.architecture, importance))
        masked, _ = transform.update(params, transform.init(params))
        for ratio in effective_mask(masked, params).values():
            np.testing.assert_allclose(ratio, expected, rtol=1e-6)


def test_rules_are_tried_in_order() -> None:
    rules = [("a/.*", None), *OWNERS]
    assert owners_of({"a": {"b": jnp.ones(1)}}, rules) == [None]


WRONG_MASKS = [
    (
        [0.0, 0.5],
        "has the shape \\(2,\\), but axes \\(1,\\) of 'w', which it owns, have the shape \\(3,\\)",
    ),
    ([0.5], "has the shape \\(1,\\)"),
    (0.5, "has the shape \\(\\)"),
    ([[0.0, 0.5, 1.0]], "has the shape \\(1, 3\\)"),
    ([0.0, 2.0, 1.0], "holds 2.0; it must be in"),
    ([0.0, -0.5, 1.0], "holds -0.5"),
    ([0.0, np.nan, 1.0], "holds nan"),
    ([0.0, np.inf, 1.0], "holds inf"),
    (["a", "b", "c"], "no array of numbers"),
    (np.array([0, 1j, 0]), "no array of numbers"),
    ([[1], [1, 0]], "no array of numbers"),
    (None, "no array of numbers"),
]


@pytest.mark.parametrize(("values", "message"), WRONG_MASKS)
def test_importance_that_is_none_is_refused_before_anything_moves(
    values: Any, message: str
) -> None:
    params = {"w": jnp.ones((2, 3))}
    with pytest.raises(ValueError, match=message):
        soft_mask({"neurons": values}, [("w", Owner("neurons", (1,)))]).init(params)


WRONG_RULES = [
    (("w", Owner("rows", (1,))), "a rule names units of the kind 'rows', but the importance given"),
    (("w", Owner("neurons", (2,))), "names the axes \\(2,\\) of an array of the shape \\(2, 3\\)"),
    (("w", Owner("neurons", (1, 1))), "names the axes \\(1, 1\\)"),
    (("w", ("neurons", (1,))), "give Owner\\(kind, axes\\)"),
    (("w", Owner("neurons", 1)), "give Owner\\(kind, axes\\)"),  # type: ignore[arg-type]
    (("w(", Owner("neurons", (1,))), "no regular expression"),
]


@pytest.mark.parametrize(("rule", "message"), WRONG_RULES)
def test_rules_that_are_none(rule: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        soft_mask({"neurons": jnp.ones(3)}, [rule]).init({"w": jnp.ones((2, 3))})


def test_a_traced_mask_is_checked_for_its_shape() -> None:
    rules = [("w", Owner("neurons", (1,)))]

    @jax.jit
    def masked(values: jax.Array) -> Any:
        updates = {"w": jnp.ones((2, 3))}
        return soft_mask({"neurons": values}, rules).update(updates, optax.EmptyState())[0]["w"]

    np.testing.assert_array_equal(masked(jnp.array([0, 0.5, 1]))[0], [1, 0.5, 0])
    with pytest.raises(ValueError, match="has the shape"):
        masked(jnp.ones(1))
