"""The mathematics of the methods beside DAS, against arrays made by an independent float64 implementation.

Tolerances as in test_golden.py, relative to an array's largest entry.
"""

import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from das_jax.data.batch import Batch
from das_jax.data.masking import Masked
from das_jax.evaluation.measures import Matrix, fuar
from das_jax.methods.example_losses import LMLosses
from das_jax.methods.fisher import FisherSums, fisher, mean_fisher, online_fisher
from das_jax.methods.penalty import quadratic_penalty, quadratic_pull
from das_jax.methods.policies.averaging import averaged, layer_shares
from das_jax.methods.policies.ema import moved_towards
from das_jax.methods.policies.rho1 import selected_weights
from das_jax.model.language_model import Params
from das_jax.objectives.masked_lm_loss import (
    masked_lm_loss,
    masked_lm_loss_per_example,
    token_losses,
)
from das_jax.objectives.mixture import cached_prior, mixture_log_probabilities, posterior
from das_jax.training.heldout import HeldoutSums, TokenLosses, log_likelihoods, mixture_sums
from tests.golden_case import Case


def test_the_model_itself(system_case: Case) -> None:
    case, masked = system_case, system_case.masked("a.")

    @jax.jit
    def forward(params: Params) -> Any:
        hidden, clean = (
            case.model.encode(params, tokens, case.array("a.attention_mask"))
            for tokens in (masked.tokens, case.array("a.input_ids"))
        )
        logits = case.model.logits(params, hidden)
        at_masked = case.model.logits(params, hidden, masked.positions)
        labels = masked.labels, masked.weights
        losses = masked_lm_loss(at_masked, *labels), masked_lm_loss_per_example(at_masked, *labels)
        return hidden, clean, logits, *losses

    names = "hidden", "clean_hidden", "logits", "mlm", "mlm_per_example"
    for name, value in zip(names, forward(case.params), strict=True):
        case.assert_close(value, case.arrays[f"a.{name}"], 1e-5, name)


def test_parameters_by_name_and_back(system_case: Case) -> None:
    theta = system_case.of("theta")
    tensors = theta.tensors(theta.params_from())
    assert set(tensors) == set(theta.arrays)
    for name, value in tensors.items():
        theta.assert_close(value, theta.arrays[name], 1e-7, name)


def test_fisher(system_case: Case) -> None:
    case = system_case.of("ewc")
    sums = FisherSums(LMLosses(case.model, system_case.objective("a.", "b.")))

    @jax.jit
    def measure(theta: Params, batch_a: Batch, batch_b: Batch) -> dict[str, Params]:
        both = jax.tree.map(lambda *x: jnp.stack(x), (case.params, batch_a), (theta, batch_b))
        squares = jax.lax.map(lambda each: fisher(sums(*each, jax.random.key(0))), both)
        of_a, of_b = (jax.tree.map(operator.itemgetter(i), squares) for i in range(2))
        return {
            "fisher_a": of_a,
            "fisher_b": of_b,
            "fisher_mean": mean_fisher(of_a, of_b, 2),
            "fisher_online": online_fisher(of_a, of_b, 0.9),
        }

    batches = (system_case.batch(text) for text in ("a.", "b."))
    measured = measure(case.of("theta").params_from(), *batches)
    for name, value in measured.items():
        case.assert_tensors_close(case.tensors(value), f"{name}.", key_bias=(1e-14, 1e-30))
    total = sum(np.sum(leaf) for leaf in jax.tree.leaves(measured["fisher_a"]))
    case.assert_close(total, case.arrays["fisher_a_sum"], 1e-4, "fisher_a_sum")


def test_quadratic_penalty(system_case: Case) -> None:
    case, theta = system_case.of("ewc"), system_case.of("theta").params_from()
    weights = case.params_from("fisher_a.")

    @jax.jit
    def measure(params: Params) -> Any:
        pull = quadratic_pull(weights, case.params, 5000)
        zeros = jax.tree.map(jnp.zeros_like, params)
        return (
            quadratic_penalty(params, weights, case.params, 5000),
            quadratic_penalty(params, 1.0, case.params, 1),
            pull.update(zeros, pull.init(params), params)[0],
        )

    penalty, distance, gradient = measure(theta)
    case.assert_close(penalty, case.arrays["penalty"], 1e-5, "penalty")
    case.assert_close(distance, case.arrays["l2_penalty"], 1e-5, "l2_penalty")
    case.assert_tensors_close(case.tensors(gradient), "penalty_grad.", key_bias=(1e-12, 1e-28))
    for value in jax.tree.leaves(measure(case.params)):
        assert not value.any()  # At the anchor nothing pulls.


def test_mixture_of_experts(system_case: Case) -> None:
    case, masked = system_case.of("demix"), system_case.masked("a.")
    objective, batch, rng = system_case.objective("a."), system_case.batch("a."), jax.random.key(0)
    rows, experts = case.arrays["log_likelihood"].shape
    own = [
        unflatten_dict(flatten_dict(case.params) | flatten_dict(case.params_from(f"expert.{e}.")))
        for e in range(experts)
    ]

    @jax.jit
    def measure(experts_E: Params) -> dict[str, jax.Array]:
        def predict(params: Params) -> tuple[jax.Array, ...]:
            hidden = case.model.encode(params, masked.tokens, case.model.mask(batch.tokens))
            return (
                log_likelihoods(TokenLosses(case.model, objective, rows)(params, batch, rng)),
                HeldoutSums(case.model, objective)(params, batch, rng),
                jax.nn.log_softmax(case.model.logits(params, hidden)),
            )

        likelihood_ExN, sums_Ex2, words_ExNxTxV = jax.lax.map(predict, experts_E)
        likely_NxE = posterior(likelihood_ExN.T)
        prior_E = cached_prior(likely_NxE)
        mixed_NxTxV = mixture_log_probabilities(words_ExNxTxV, prior_E)
        at_masked = jnp.take_along_axis(mixed_NxTxV, masked.positions[..., None], axis=1)
        return {
            "log_likelihood": likelihood_ExN.T,
            "posterior": likely_NxE,
            "prior": prior_E,
            "mlm_per_expert": sums_Ex2[:, 0] / sums_Ex2[:, 1],
            "mixture.log_probs_of_example_0": mixed_NxTxV[0],
            "mixture.label_log_prob": per_token(
                jnp.take_along_axis(at_masked, masked.labels[..., None], axis=-1)[..., 0], masked
            ),
        }

    measured = measure(jax.tree.map(lambda *parts: jnp.stack(parts), *own))
    tokens = jax.jit(TokenLosses(case.model, objective, rows))
    tokens_Ex2xNxM = np.stack([tokens(params, batch, rng) for params in own])
    loss, count = mixture_sums(tokens_Ex2xNxM, measured["prior"])
    measured["mixture.mlm"] = jnp.asarray(loss / count)
    for name, value in measured.items():
        case.assert_close(value, case.arrays[name], 1e-5, name)
    assert int(measured["mlm_per_expert"].argmin()) == case.arrays["nearest"]


def per_token(values_BxM: jax.Array, masked: Masked) -> jax.Array:
    """Of masked positions, at their places in the text; 0 elsewhere, [B, T]."""
    zeros_BxT = jnp.zeros(masked.tokens.shape, values_BxM.dtype)
    rows_Bx1 = jnp.arange(len(values_BxM))[:, None]
    return zeros_BxT.at[rows_Bx1, masked.positions].add(values_BxM * masked.weights)


def test_rho1(system_case: Case) -> None:
    case, masked = system_case.of("policies"), system_case.masked("a.")
    mask = system_case.array("a.attention_mask")

    def losses(params: Params) -> jax.Array:
        hidden = case.model.encode(params, masked.tokens, mask)
        return token_losses(case.model.logits(params, hidden, masked.positions), masked.labels)

    @jax.jit
    def select(both: Params) -> list[jax.Array]:
        own, reference = jax.lax.map(losses, both)
        weights = selected_weights(own, reference, masked.weights, keep=0.6)
        loss = jnp.sum(own * weights) / weights.sum()
        return [*(per_token(x, masked) for x in (own, reference, weights)), loss]

    theta = case.of("theta").params_from()
    own, reference, weights, loss = select(
        jax.tree.map(lambda *x: jnp.stack(x), theta, case.params)
    )
    case.assert_close(own, case.arrays["rho.loss_per_token"], 1e-5, "own losses")
    case.assert_close(reference, case.arrays["rho.reference_per_token"], 1e-5, "reference")
    np.testing.assert_array_equal(weights > 0, case.arrays["rho.selected"])
    assert weights.sum() == case.arrays["rho.keep"]
    case.assert_close(loss, case.arrays["rho.loss"], 1e-5, "rho.loss")


def test_averaging_per_layer(system_case: Case) -> None:
    case = system_case.of("policies")
    shares = layer_shares(case.params, 1 - case.arrays["average.per_layer"])
    result = jax.jit(averaged)(case.params, case.of("theta").params_from(), shares)
    tensors = case.tensors(result)
    for name, value in case.named("average.result.").items():
        case.assert_close(tensors[name], value, 1e-5, name)


@pytest.mark.parametrize("of", ["bert", "roberta"])
def test_running_average(systems: Any, of: str) -> None:
    arrays = systems(of).arrays("policies")
    first, *others = arrays["ema.params"]
    averages = [first]
    for params in others:
        averages.append(moved_towards({"x": averages[-1]}, {"x": params}, 1 - 0.9)["x"])
    np.testing.assert_allclose(np.stack(averages), arrays["ema.average"], rtol=1e-12)


@pytest.mark.parametrize("of", ["bert", "roberta"])
def test_measures(systems: Any, of: str) -> None:
    arrays = systems(of).arrays("measures")
    scores, general = arrays["scores"], arrays["general"]
    matrix = Matrix(
        np.concatenate([scores, general], axis=1)[None],
        (*range(1, scores.shape[1] + 1), *[0] * general.shape[1]),
    )
    measured = {
        "overall": matrix.overall(),
        "forgetting": matrix.forgetting(),
        "forgetting_rate": matrix.forgetting_rate(),
        "backward_transfer": matrix.backward_transfer(),
        "forward_transfer": matrix.forward_transfer(),
        "x_delta": matrix.general_delta(),
        "fuar": fuar(*(arrays[f"fuar.{name}"] for name in ("kept", "updated", "acquired"))),
    }
    for name, value in measured.items():
        np.testing.assert_allclose(np.squeeze(value), arrays[name], rtol=1e-12, err_msg=name)
