from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from das_jax.methods.contract import Method, Moment
from das_jax.methods.naive import Naive
from das_jax.methods.net import Net
from das_jax.methods.policies.ir_dro import IRDRO, middle_shares, softmax_shares
from das_jax.methods.settings.policies import IRDROSettings
from das_jax.training.sharding import make_sharding
from tests.golden_case import Case
from tests.methods.test_rehearsal import without_dropout


@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_loss_and_gradient_are_the_golden_ones(system_case: Case, temperature: float) -> None:
    """No gradient flows through the shares: the norm would be another."""
    case = system_case
    params = case.of("theta").params_from()
    model = without_dropout(case.model)
    method = Naive(model, case.objective("a."), None)
    weigh = IRDRO(method, IRDROSettings(temperature=temperature)).weigh(())

    def loss(params: Any) -> jax.Array:
        zero = jnp.zeros((), jnp.int32)
        moment = Moment(zero, zero, 1, jax.random.key(0), weigh)
        return method.loss(Net(model, params), (), case.batch("a."), moment)[0]

    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    norm = jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(gradient)))
    policies = case.of("policies")
    name = f"t{temperature:g}"
    policies.assert_close(value, policies.arrays[f"ir_dro.loss.{name}"], 1e-5, "loss")
    policies.assert_close(norm, policies.arrays[f"ir_dro.grad_norm.{name}"], 1e-4, "gradient")
    losses = policies.array("ir_dro.loss_per_example")
    shares = softmax_shares(losses, jnp.ones(losses.shape, bool), temperature)
    policies.assert_close(shares, policies.arrays[f"ir_dro.weights.{name}"], 1e-5, "shares")


def test_shares_are_of_the_global_batch_on_any_mesh() -> None:
    """Of 16 examples, two of which predict nothing, with ties among the others."""
    losses = jax.random.normal(jax.random.key(1), (16,)).round(1)
    counts = jnp.ones(16, bool).at[jnp.array([3, 11])].set(False)
    own = np.asarray(losses, np.float64)
    powers = np.where(counts, np.exp(own / 0.5), 0)
    ranked = sorted(np.flatnonzero(counts), key=lambda i: (-own[i], i))
    kept = ranked[2:4]  # Of 14: from ceil(1.75) up to ceil(3.5).
    middle = np.isin(np.arange(16), kept) / 2
    for sharding in map(make_sharding, (1, 8)):
        rows = PartitionSpec(sharding.batch)

        def both(losses: jax.Array, counts: jax.Array, axis: Any = sharding.batch) -> Any:
            return (
                softmax_shares(losses, counts, 0.5, axis),
                middle_shares(losses, counts, (0.125, 0.25), axis),
            )

        mapped = jax.shard_map(
            both, mesh=sharding.mesh, in_specs=(rows, rows), out_specs=(rows, rows)
        )
        soft, hard = jax.jit(mapped)(losses, counts)
        np.testing.assert_allclose(soft, powers / powers.sum(), rtol=1e-5)
        np.testing.assert_array_equal(hard, middle)


def test_a_high_temperature_makes_it_the_mean_and_one_example_stays_at_least() -> None:
    losses, counts = jnp.array([3.0, 1.0, 2.0, 9.0]), jnp.array([True, True, True, False])
    np.testing.assert_allclose(
        softmax_shares(losses, counts, 1e6), [1 / 3, 1 / 3, 1 / 3, 0], rtol=1e-5
    )
    keep = partial(middle_shares, losses, counts)
    np.testing.assert_array_equal(keep((0.125, 0.25)), [0, 0, 1, 0])  # The highest is left out.
    np.testing.assert_array_equal(keep((0.9, 0.95)), [0, 1, 0, 0])
    nothing = jnp.zeros(4, bool)
    assert not softmax_shares(losses, nothing, 1.0).any()
    assert not middle_shares(losses, nothing, (0.1, 0.5)).any()


def test_the_loss_of_ranks_is_the_mean_over_their_examples(
    model: Any, objective: Any, params: Any, batch: Any
) -> None:
    """Each over its own predictions, of which the padded texts have fewer."""
    model = without_dropout(model)
    policy = IRDRO(
        Method(model, objective, None), IRDROSettings(form="mid_ranking", keep=(0.25, 0.75))
    )
    drawn = objective.draw(batch.tokens, batch.example_keys(jax.random.key(2)))
    losses = jax.random.uniform(jax.random.key(5), drawn.labels.shape)
    weights = policy.weigh(())(Net(model, params), drawn, losses)
    means = np.asarray((losses * drawn.weights).sum(1) / drawn.weights.sum(1))
    wanted = np.sort(means)[2:6].mean()
    assert float(weights.sum()) == pytest.approx(1)
    assert float((losses * weights).sum()) == pytest.approx(wanted, rel=1e-5)
