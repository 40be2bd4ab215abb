import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from das_jax.data.objective import HiddenTokens
from das_jax.errors import UserError
from das_jax.methods.contract import Learned, Method, Plan, SecondMoment
from das_jax.methods.fisher import Sums
from das_jax.methods.policies.averaging import (
    Averaging,
    Per,
    averaged,
    kept_axes,
    layer_axes,
    layer_shares,
    mean_along,
    merge_shares,
    second_moment_of_stage,
)
from das_jax.methods.settings.policies import AveragingSettings
from das_jax.methods.settings.whole_model import NaiveSettings
from das_jax.model.grafts.blocks import Blocks
from das_jax.model.language_model import LanguageModel, Params
from das_jax.model.units import parameter_paths


def test_a_carried_second_moment_gives_the_stage_its_own() -> None:
    """What Adam has after a stage is split into what it had before and what the stage brought."""
    adam = optax.scale_by_adam(b2=0.99)
    gradients_SxX = jax.random.normal(jax.random.key(0), (30, 5))

    def run(state: optax.OptState, first: int, last: int) -> optax.OptState:
        for gradient_X in gradients_SxX[first:last]:
            _, state = adam.update(gradient_X, state)
        return state

    start = run(adam.init(jnp.zeros(5)), 0, 18)
    carried = second_moment_of_stage(run(start, 18, 30).nu, start.nu, 0.99, 12)
    fresh = run(adam.init(jnp.zeros(5)), 18, 30).nu / (1 - 0.99**12)
    np.testing.assert_allclose(carried, fresh, rtol=1e-5)


def squares(params: Params, seed: int) -> Params:
    """Positive numbers over several orders of magnitude, as second moments are."""
    keys = iter(jax.random.split(jax.random.key(seed), len(jax.tree.leaves(params))))
    return jax.tree.map(lambda x: jnp.exp(3 * jax.random.normal(next(keys), x.shape)), params)


@pytest.mark.parametrize("c", [1.0, 2.0])
def test_the_rule_element_by_element(params: Params, c: float) -> None:
    new, old = squares(params, 1), squares(params, 2)
    shares = jax.jit(lambda new, old: merge_shares(new, old, c, layer_axes(params)))(new, old)

    def check(share: np.ndarray, v: np.ndarray, earlier: np.ndarray) -> None:
        delta = 0.1 * np.mean((earlier + v) / 2)
        expected = c * (v + delta) / (c * (v + delta) + earlier + delta)
        np.testing.assert_allclose(share, expected, rtol=1e-5)

    names = parameter_paths(params)
    for name, *arrays in zip(names, *map(jax.tree.leaves, (shares, new, old)), strict=True):
        share, v, earlier = map(np.asarray, arrays)
        # A layer's own array is the tensor, however many layers are stacked.
        layers = range(len(share)) if name.startswith("layers/") else [...]
        for layer in layers:
            check(share[layer], v[layer], earlier[layer])


def test_no_use_anywhere_and_use_by_one_alone() -> None:
    zeros, ones = {"x": jnp.zeros(3)}, {"x": jnp.ones(3)}
    for new, old, share in ((zeros, zeros, 2 / 3), (ones, ones, 2 / 3), (zeros, ones, 0.1 / 1.15)):
        np.testing.assert_allclose(merge_shares(new, old, 2.0, [()])["x"], share, rtol=1e-5)


def test_weights_of_units_and_tensors(params: Params) -> None:
    sizes = {}
    weights = squares(params, 3)

    @partial(jax.jit, static_argnames="per")
    def halfway(params: Params, per: Per) -> tuple[Params, Params]:
        means = mean_along(weights, kept_axes(params, per))
        shares = merge_shares(means, means, 1.0, layer_axes(params))
        return means, averaged(params, jax.tree.map(lambda x: x + 1, params), shares)

    pers: tuple[Per, ...] = ("unit", "tensor", "element")
    for per in pers:
        means, half = jax.tree.map(np.asarray, halfway(params, per))
        sizes[per] = sum(x.size for x in jax.tree.leaves(means))
        for now, before in zip(*map(jax.tree.leaves, (half, params)), strict=True):
            np.testing.assert_allclose(now, np.asarray(before) + 0.5, atol=1e-5)
        words = means["embeddings"]["word"]["embedding"]
        query = means["layers"]["attention"]["query"]["kernel"]
        whole = np.asarray(weights["embeddings"]["word"]["embedding"])
        if per == "unit":  # A row of the vocabulary; a head of a layer.
            np.testing.assert_allclose(words, whole.mean(axis=1, keepdims=True), rtol=1e-5)
            every = np.asarray(weights["layers"]["attention"]["query"]["kernel"])
            np.testing.assert_allclose(query, every.mean(axis=(1, 3), keepdims=True), rtol=1e-5)
        if per == "tensor":
            np.testing.assert_allclose(words, [[whole.mean()]], rtol=1e-5)
    layers, names = 2, parameter_paths(params)
    assert sizes["tensor"] == sum(layers if n.startswith("layers/") else 1 for n in names)
    assert sizes["tensor"] < sizes["unit"] < sizes["element"] / 5


def test_what_a_method_adds_has_a_weight_for_every_element() -> None:
    """The table of leaves knows no axes of it."""
    weights = {"graft": {"down": {"kernel": jnp.arange(12.0).reshape(2, 3, 2)}}}
    pers: tuple[Per, ...] = ("element", "unit")
    for per in pers:
        assert kept_axes(weights, per) == [(0, 1, 2)]


def averaging(model: LanguageModel, objective: HiddenTokens, **options: Any) -> Averaging:
    method = Method(model, objective, NaiveSettings())
    return Averaging(method, AveragingSettings(**options), batch_size=10)


class Measured(NamedTuple):
    """A domain of which two examples were measured."""

    index: int
    plan: Plan
    squares: Params
    name: str = "acl"
    rng: jax.Array = jax.random.key(0)

    def accumulate(self, function: Any, params: Params, rng: jax.Array, **how: Any) -> Sums:
        return Sums(self.squares, jnp.float32(2))


def test_a_uniform_average_begins_with_the_second_domain(
    model: LanguageModel, objective: HiddenTokens, params: Params
) -> None:
    policy = averaging(model, objective, weights="uniform", alpha=0.25)
    plan = Plan(model)
    memory = policy.init(params)
    after = Learned(jax.tree.map(lambda x: x + 1, params), ())
    nothing = SecondMoment({}, jnp.int32(0))
    for index, share in ((0, 1.0), (1, 0.25)):
        domain: Any = Measured(index, plan, params)
        learned, same = policy.end(after, memory, domain, nothing)
        assert same is memory
        for now, before in zip(*map(jax.tree.leaves, (learned.params, params)), strict=True):
            np.testing.assert_allclose(now, np.asarray(before) + share, atol=1e-6)


@pytest.mark.parametrize(("weights", "divided_by"), [("moments", 2 * 10), ("fisher", 2)])
def test_a_prior_counts_as_an_earlier_domain(
    model: LanguageModel, objective: HiddenTokens, params: Params, weights: Any, divided_by: int
) -> None:
    """Adam's second moment is of a batch's gradient, a Fisher of an example's."""
    policy = averaging(model, objective, weights=weights, prior=2)
    domain: Any = Measured(0, Plan(model), squares(params, 4))
    memory = policy.begin(Learned(params, ()), policy.init(params), domain, None)
    for prior, total in zip(*map(jax.tree.leaves, (memory.earlier, domain.squares)), strict=True):
        np.testing.assert_allclose(prior, total / divided_by, rtol=1e-6)


def test_a_method_that_changes_shapes_is_refused(
    model: LanguageModel, objective: HiddenTokens, params: Params
) -> None:
    policy = averaging(model, objective)
    grown = {**params, "graft": {"scale": jnp.ones(3)}}
    domain: Any = Measured(1, Plan(model), params)
    with pytest.raises(UserError, match=r"method\.name naive changes the model's shape before acl"):
        policy.begin(Learned(grown, ()), policy.init(params), domain, None)


def test_a_layers_share_is_that_of_what_is_added_to_it(
    model: LanguageModel, params: Params
) -> None:
    """An inserted block goes with the layer below it."""
    blocks = Blocks(every=2)
    grafted = {**params, "graft": blocks.init(model.architecture, jax.random.key(0), params)}
    leaves = dataclasses.replace(model, graft=blocks).leaves
    shares = layer_shares(grafted, [0.1, 0.2, 0.3, 0.4], leaves)
    for path, share in zip(parameter_paths(shares), jax.tree.leaves(shares), strict=True):
        top = path.partition("/")[0]
        wanted = {"embeddings": [0.1], "layers": [0.2, 0.3], "graft": [0.3], "lm_head": [0.4]}[top]
        np.testing.assert_allclose(share.reshape(-1), wanted, rtol=1e-6, err_msg=path)
    assert set(layer_axes({"graft": grafted["graft"]}, leaves)) == {(0,)}
