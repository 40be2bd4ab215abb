"""The FLOP formula against a calculation by hand and against XLA's own count."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

from das_jax.data.batch import Batch
from das_jax.data.masking import Masking
from das_jax.data.objective import HiddenTokens
from das_jax.methods.contract import Cost, Memory, Method, Moment
from das_jax.methods.das import importance
from das_jax.methods.das.das import DAS, ContrastiveSettings, DASSettings
from das_jax.methods.naive import Naive, NaiveSettings
from das_jax.methods.net import Net
from das_jax.methods.policies.sharpness import Sharpness
from das_jax.methods.settings.policies import SharpnessSettings
from das_jax.model.flops import transformer_flops
from das_jax.model.language_model import LanguageModel, Params
from das_jax.planning.architectures import KNOWN
from das_jax.training.flops import train_step_flops
from das_jax.training.muon import ITERATIONS, Muon
from das_jax.training.optimizer import Optimizer
from das_jax.training.step import Recipe, init_state, loss_and_gradients, recipe

BASE = KNOWN["FacebookAI/roberta-base"]

ONE_LAYER = dataclasses.replace(
    BASE, num_layers=1, vocab_size=2000, hidden_dropout=0.0, attention_dropout=0.0
)
"""Wide, so that products outweigh all else; of one layer, as XLA counts the body of a loop once."""

BATCH, LENGTH = 2, 64
OBJECTIVE = HiddenTokens(
    Masking(mask_token=4, special_tokens=(0, 1, 2, 4), vocab_size=2000), padding=1
)
CLOSE = 0.04
"""XLA counts elementwise operations too."""


def test_encoder_by_hand() -> None:
    # Per layer and token: q, k, v and output 4 x 768 x 768, feed-forward 2 x 768 x 3072, and the scores and
    # the context 2 x 128 x 768; two FLOPs each.
    per_token = 2 * (4 * 589_824 + 2 * 2_359_296 + 2 * 98_304)
    assert transformer_flops(BASE, 128) == 12 * 128 * per_token == 22_347_251_712


def test_train_step_by_hand() -> None:
    encoder, head = 22_347_251_712, 19 * 2 * 768 * (768 + 50_265)
    model = LanguageModel(BASE)
    naive = train_step_flops(_recipe(Naive(model, OBJECTIVE, NaiveSettings())), 256, 128)
    das = train_step_flops(_recipe(DAS(model, OBJECTIVE, DASSettings())), 256, 128)
    assert naive == 3 * 256 * (encoder + head)
    assert das == 3 * 256 * (4 * encoder + head)


@pytest.mark.parametrize(
    ("anchor", "subsample", "passes"), [("clean", 1, 4), ("masked", 1, 3), ("masked", 2, 2)]
)
def test_das_step_as_xla_counts(anchor: Any, subsample: int, passes: float) -> None:
    settings = DASSettings(contrastive=ContrastiveSettings(anchor=anchor, subsample=subsample))
    method = DAS(LanguageModel(ONE_LAYER), OBJECTIVE, settings)
    assert method.cost() == Cost(full=passes)
    formula = train_step_flops(_recipe(method), BATCH, LENGTH)
    assert _count_step(method) == pytest.approx(formula, rel=CLOSE)


def test_naive_step_as_xla_counts() -> None:
    method = Naive(LanguageModel(ONE_LAYER), OBJECTIVE, NaiveSettings())
    formula = train_step_flops(_recipe(method), BATCH, LENGTH)
    assert _count_step(method) == pytest.approx(formula, rel=CLOSE)


@pytest.mark.parametrize(
    "losses", [importance.LM, importance.proxy("hidden")], ids=lambda losses: losses.name
)
def test_importance_as_xla_counts(losses: importance.Losses) -> None:
    method = DAS(LanguageModel(ONE_LAYER), OBJECTIVE, DASSettings())
    params = jax.eval_shape(method.model.init, jax.random.key(0))
    gradients = jax.jit(
        lambda params, batch, rng: importance.gate_gradients(method, losses, params, batch, rng)
    )
    counted = gradients.lower(params, _batch(), jax.random.key(0)).cost_analysis()["flops"]
    formula = BATCH * importance.GateGradientSums(method, losses).flops(LENGTH)
    assert counted == pytest.approx(formula, rel=CLOSE)


def test_a_sharpness_aware_step_as_xla_counts() -> None:
    method = Naive(LanguageModel(ONE_LAYER), OBJECTIVE, NaiveSettings())
    policies = tuple(Sharpness(method, SharpnessSettings(every=every)) for every in (1, 4))
    plain = train_step_flops(_recipe(method), BATCH, LENGTH)
    both, sometimes = (
        dataclasses.replace(_recipe(method), policies=(policy,)) for policy in policies
    )
    assert train_step_flops(sometimes, BATCH, LENGTH) == pytest.approx(1.25 * plain)

    def gradients(params: Params, batch: Batch, rng: jax.Array) -> Any:
        state = init_state(both, params, (), rng, policies={"sharpness": ()})

        def at(params: Params) -> Any:
            return loss_and_gradients(both, state._replace(params=params), batch)

        return both.gradients(at, params, state.step)

    params = jax.eval_shape(method.model.init, jax.random.key(0))
    lowered = jax.jit(gradients).lower(params, _batch(), jax.random.key(0))
    formula = train_step_flops(both, BATCH, LENGTH)
    assert lowered.cost_analysis()["flops"] == pytest.approx(formula, rel=CLOSE)


def test_muons_products_as_xla_counts() -> None:
    """Of one turn of its loop; of the matrices of the layers, and of no other parameter."""
    model, muon = LanguageModel(ONE_LAYER), Muon(0.95, 0.2, 0.9, 0.999, 1e-8, 0.0)
    params = jax.eval_shape(model.init, jax.random.key(0))
    lowered = jax.jit(muon.update).lower(params, jax.eval_shape(muon.init, params), params)
    formula = muon.flops(params)
    assert ITERATIONS * lowered.cost_analysis()["flops"] == pytest.approx(formula, rel=CLOSE)
    method = Naive(model, OBJECTIVE, NaiveSettings())
    plain, made = _recipe(method), recipe(method, Optimizer(muon, lambda step: 1.0))
    steps = [train_step_flops(each, BATCH, LENGTH) for each in (plain, made)]
    assert steps[1] - steps[0] == formula


def _count_step(method: Method) -> float:
    params = jax.eval_shape(method.model.init, jax.random.key(0))
    memory = jax.eval_shape(method.init, params)

    def loss(params: Params, memory: Memory, batch: Batch, rng: jax.Array) -> Any:
        moment = Moment(jnp.int32(0), jnp.int32(0), 1, rng)
        return method.loss(Net(method.model, params), memory, batch, moment)

    gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))
    lowered = gradients.lower(params, memory, _batch(), jax.random.key(0))
    return lowered.cost_analysis()["flops"]


def _recipe(method: Method) -> Recipe:
    return recipe(method, Optimizer(optax.identity(), lambda step: 1.0))


def _batch() -> Batch:
    tokens_BxT = jnp.full((BATCH, LENGTH), 7, jnp.int32)
    return Batch(tokens_BxT, jnp.arange(BATCH, dtype=jnp.uint32), jnp.ones(BATCH))
