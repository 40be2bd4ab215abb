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
from das_jax.data.masking import Masked, Masking
from das_jax.evaluation.measures import Matrix, fuar
from das_jax.methods.contract import Method
from das_jax.methods.fisher import FisherSums, fisher, mean_fisher, online_fisher
from das_jax.methods.penalty import quadratic_penalty, quadratic_pull
from das_jax.methods.policies.averaging import averaged, layer_shares
from das_jax.methods.policies.rho1 import selected_weights
from das_jax.model.masked_lm import Params
from das_jax.objectives.distillation import hidden_mse
from das_jax.objectives.masked_lm import (
    masked_lm_loss,
    masked_lm_loss_per_example,
    token_losses,
)
from das_jax.objectives.mixture import (
    cached_prior,
    log_likelihood_per_example,
    mixture_log_probabilities,
    posterior,
)
from tests.golden_case import Case, from_labels

UNUSED_MASKING = Masking(mask_token=0, special_tokens=(), vocab_size=1)


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


def corruptions(case: Case) -> Masked:
    """Of both texts, one after the other."""
    arrays = case.of("inputs").arrays
    tokens, labels = (
        np.concatenate([arrays[f"{text}.{name}"] for text in "ab"])
        for name in ("corrupted_ids", "labels")
    )
    return from_labels(tokens, labels)


def test_fisher(system_case: Case) -> None:
    case = system_case.of("ewc")
    masked, inputs = corruptions(case), system_case
    rows = len(inputs.arrays["a.labels"])

    def losses(method: Method, params: Params, batch: Batch, rng: jax.Array) -> jax.Array:
        own = jax.tree.map(lambda x: x[batch.index], masked)
        hidden = method.model.encode(params, own.tokens, method.model.mask(batch.tokens))
        logits = method.model.logits(params, hidden, own.positions)
        return masked_lm_loss_per_example(logits, own.labels, own.weights)

    sums = FisherSums(Method(case.model, UNUSED_MASKING, None), losses)

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

    batch_b = inputs.batch("b.")
    batch_b = batch_b._replace(index=batch_b.index + rows)
    measured = measure(case.of("theta").params_from(), inputs.batch("a."), batch_b)
    for name, value in measured.items():
        case.assert_tensors_close(case.tensors(value), f"{name}.", key_bias=(1e-14, 1e-30))
    total = sum(np.sum(leaf) for leaf in jax.tree.leaves(measured["fisher_a"]))
    case.assert_close(total, case.arrays["fisher_a_sum"], 1e-4, "fisher_a_sum")


def test_quadratic_penalty(system_case: Case) -> None:
    case, theta = system_case.of("ewc"), system_case.of("theta").params_from()
    weights = case.params_from("fisher_a.")
    ones = jax.tree.map(jnp.ones_like, weights)

    @jax.jit
    def measure(params: Params) -> Any:
        pull = quadratic_pull(weights, case.params, 5000)
        zeros = jax.tree.map(jnp.zeros_like, params)
        return (
            quadratic_penalty(params, weights, case.params, 5000),
            quadratic_penalty(params, ones, case.params, 1),
            pull.update(zeros, pull.init(params), params)[0],
        )

    penalty, distance, gradient = measure(theta)
    case.assert_close(penalty, case.arrays["penalty"], 1e-5, "penalty")
    case.assert_close(distance, case.arrays["l2_penalty"], 1e-5, "l2_penalty")
    case.assert_tensors_close(case.tensors(gradient), "penalty_grad.", key_bias=(1e-12, 1e-28))
    for value in jax.tree.leaves(measure(case.params)):
        assert not value.any()  # At the anchor nothing pulls.


def test_derpp(system_case: Case) -> None:
    case, inputs = system_case.of("derpp"), system_case
    now, stored = inputs.masked("a."), inputs.masked("b.")
    masks = [inputs.array(f"{text}.attention_mask") for text in "ab"]
    buffer = case.array("buffer.hidden")

    def at_positions(hidden: jax.Array) -> jax.Array:
        return jnp.take_along_axis(hidden, stored.positions[..., None], axis=1)

    def terms(params: Params) -> Any:
        def mlm(hidden: jax.Array, masked: Masked) -> jax.Array:
            logits = case.model.logits(params, hidden, masked.positions)
            return masked_lm_loss(logits, masked.labels, masked.weights)

        both_texts = jnp.concatenate([now.tokens, stored.tokens])
        hidden = case.model.encode(params, both_texts, jnp.concatenate(masks))
        current, hidden = jnp.split(hidden, [len(now.tokens)])
        targets = hidden_mse(at_positions(hidden), at_positions(buffer), stored.weights)
        values = {
            "mlm": mlm(current, now),
            "mlm_buffer": mlm(hidden, stored),
            "mse_targets": targets,
            "mse_tokens": hidden_mse(hidden, buffer, masks[1]),
        }
        both = values["mlm"] + 0.5 * values["mlm_buffer"]
        values["loss_tokens"] = both + 0.5 * values["mse_tokens"]
        return both + 0.5 * targets, values

    (loss, values), gradient = jax.jit(jax.value_and_grad(terms, has_aux=True))(
        case.of("theta").params_from()
    )
    for name, value in (("loss", loss), *values.items()):
        case.assert_close(value, case.arrays[name], 1e-5, name)
    case.assert_tensors_close(case.tensors(gradient), "grad.")


def test_mixture_of_experts(system_case: Case) -> None:
    case, masked = system_case.of("demix"), system_case.masked("a.")
    mask = system_case.array("a.attention_mask")
    experts = [case.params_from(f"expert.{e}.") for e in range(case.arrays["prior"].size)]

    @jax.jit
    def measure(experts_E: Params) -> dict[str, jax.Array]:
        def predict(own: Params) -> tuple[jax.Array, jax.Array]:
            params = unflatten_dict(flatten_dict(case.params) | flatten_dict(own))
            hidden = case.model.encode(params, masked.tokens, mask)
            return tuple(case.model.logits(params, hidden, at) for at in (masked.positions, None))

        at_masked, everywhere = jax.lax.map(predict, experts_E)
        labels = masked.labels, masked.weights
        likelihood = jnp.stack([log_likelihood_per_example(x, *labels) for x in at_masked], axis=-1)
        likely = posterior(likelihood)
        prior = cached_prior(likely)
        words = mixture_log_probabilities(jax.nn.log_softmax(everywhere[:, 0]), prior)
        of_labels = mixture_log_probabilities(
            jnp.stack([-token_losses(x, masked.labels) for x in at_masked]), prior
        )
        return {
            "log_likelihood": likelihood,
            "posterior": likely,
            "prior": prior,
            "mlm_per_expert": jnp.stack([masked_lm_loss(x, *labels) for x in at_masked]),
            "mixture.log_probs_of_example_0": words,
            "mixture.label_log_prob": per_token(of_labels, masked),
            "mixture.mlm": -jnp.sum(of_labels * masked.weights) / masked.weights.sum(),
        }

    measured = measure(jax.tree.map(lambda *parts: jnp.stack(parts), *experts))
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
