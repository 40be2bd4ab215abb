import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from das_jax.data.batch import Batch
from das_jax.data.objective import HiddenTokens
from das_jax.errors import UserError
from das_jax.methods.contract import Method
from das_jax.methods.policies.rho1 import RHO1, selected_weights
from das_jax.methods.settings.policies import RHO1Settings
from das_jax.methods.settings.whole_model import NaiveSettings
from das_jax.model.language_model import LanguageModel, Params
from das_jax.objectives.masked_lm_loss import token_losses
from das_jax.training import sharding as sharding_module
from das_jax.training.optimizer import Optimizer
from das_jax.training.sharding import Sharding, make_sharding
from das_jax.training.step import compile_train_step, first_state, recipe
from tests.project import Project


def test_the_choice_is_of_the_global_batch_and_exact() -> None:
    """As one device makes it, whatever the mesh; of equal losses the first, and never more than asked for."""
    losses, reference = jax.random.normal(jax.random.key(1), (2, 16, 5)).round(1)  # Many ties.
    weights = (jax.random.uniform(jax.random.key(2), (16, 5)) < 0.7).astype(jnp.float32)
    targets = int(weights.sum())
    excess = np.where(weights > 0, np.asarray(losses - reference), -np.inf).reshape(-1)
    best = sorted(range(excess.size), key=lambda i: (-excess[i], i))[: int(np.ceil(0.6 * targets))]
    expected = np.isin(np.arange(excess.size), best).reshape(weights.shape)
    for sharding in map(make_sharding, (1, 8)):
        rows = PartitionSpec(sharding.batch)
        choose = jax.shard_map(
            partial(selected_weights, keep=0.6, axis_name=sharding.batch),
            mesh=sharding.mesh,
            in_specs=(rows, rows, rows),
            out_specs=rows,
        )
        np.testing.assert_array_equal(jax.jit(choose)(losses, reference, weights), expected)


def test_the_number_is_rounded_up_in_whole_numbers() -> None:
    for keep, targets, count in ((0.6, 5, 3), (0.6, 6, 4), (0.1, 10, 1), (0.7, 10, 7), (1.0, 9, 9)):
        zeros = jnp.zeros((1, 10))
        weights = jnp.arange(10)[None] < targets
        chosen = selected_weights(zeros, zeros, weights.astype(jnp.float32), keep)
        np.testing.assert_array_equal(chosen[0], np.arange(10) < count)  # All equal: the first.
    empty = selected_weights(jnp.zeros((2, 3)), jnp.zeros((2, 3)), jnp.zeros((2, 3)), 0.6)
    assert not empty.any()


def test_a_step_learns_what_is_worst_in_comparison_on_any_mesh(
    model: LanguageModel, objective: HiddenTokens, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a reference that lives in parts."""
    monkeypatch.setattr(sharding_module, "SMALLEST_SPLIT", 2)
    still = dataclasses.replace(model.architecture, hidden_dropout=0.0, attention_dropout=0.0)
    model = LanguageModel(still)
    params, reference = (jax.jit(model.init)(jax.random.key(seed)) for seed in (0, 7))

    def step(sharding: Sharding) -> tuple[float, Params]:
        method = Method(model, objective, NaiveSettings(), sharding.batch)
        policy = RHO1(method, RHO1Settings(keep=0.3))
        made = recipe(method, Optimizer(optax.identity(), lambda step: 1.0), policies=(policy,))
        memory = {policy.name: policy.init(reference)}
        rng = sharding.replicate(jax.random.key(3))
        state = first_state(made, sharding, params, (), rng, policies=memory)
        after, metrics = compile_train_step(made, sharding)(state, sharding.shard_batch(batch))
        moved = jax.tree.map(lambda a, b: a - b, sharding.fetch(after.params), params)
        return float(metrics["loss"]), moved

    mask_key, _ = jax.random.split(jax.random.key(3))
    masked = objective.masking.corrupt(batch.tokens, batch.example_keys(mask_key))

    @jax.jit
    def losses(params: Params) -> jax.Array:
        hidden = model.encode(params, masked.tokens, model.mask(batch.tokens))
        return token_losses(model.logits(params, hidden, masked.positions), masked.labels)

    own, other = losses(params), losses(reference)
    counts = np.asarray(masked.weights, bool)
    excess, wanted = np.asarray(own - other)[counts], np.asarray(own)[counts]
    best = np.argsort(-excess)[: int(np.ceil(0.3 * excess.size))]
    loss, moved = step(make_sharding(1))
    assert loss == pytest.approx(wanted[best].mean(), rel=1e-5)
    assert loss != pytest.approx(wanted.mean(), rel=1e-2)
    elsewhere, moved_elsewhere = step(make_sharding(8, "parameters"))
    assert elsewhere == pytest.approx(loss, rel=1e-5)
    for a, e in zip(*map(jax.tree.leaves, (moved_elsewhere, moved)), strict=True):
        assert np.linalg.norm(a - e) <= 1e-4 * np.linalg.norm(e) + 1e-6


def test_a_reference_of_another_architecture_is_refused(
    model: LanguageModel, objective: HiddenTokens, project: Project
) -> None:
    path = str(project.directory / "model")
    policy = RHO1(Method(model, objective, NaiveSettings()), RHO1Settings(reference=path))
    with pytest.raises(UserError, match="another architecture than the model"):
        policy.check()
