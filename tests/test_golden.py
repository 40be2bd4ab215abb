"""Everything DAS computes, against arrays made by an independent float64 implementation.

In float32 the tolerances are 1e-5 for logits and losses and 1e-4 for gradients, importance and trained
parameters, relative to the largest entry; with x64 on they are 1e-9 for all. `--golden DIR` runs the
same tests on arrays of other sizes.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from das_jax.data.batch import Batch
from das_jax.data.objective import Drawn
from das_jax.methods.contract import Moment
from das_jax.methods.das import importance
from das_jax.methods.das.das import DAS, DASMemory, DASSettings
from das_jax.methods.net import Net
from das_jax.methods.soft_mask import SoftMaskSettings, soft_mask
from das_jax.model.heads import mean_pool
from das_jax.model.language_model import Params
from das_jax.model.units import Units
from das_jax.objectives.contrastive import contrastive_loss
from das_jax.objectives.masked_lm_loss import masked_lm_loss, masked_lm_loss_per_example
from das_jax.objectives.proxy_kl import proxy_kl_per_example
from das_jax.training.optimizer import Optimizer, adamw
from das_jax.training.sharding import make_sharding
from das_jax.training.step import compile_train_step, init_state, make_train_step, recipe
from tests.golden_case import Case


def mlm_losses(
    case: Case, params: Params, gates: Units | None = None
) -> tuple[jax.Array, jax.Array]:
    """Per example and of the batch, on the corrupted text."""
    masked = case.masked()
    mask = case.array("attention_mask")
    hidden = case.model.encode(params, masked.tokens, mask, gates)
    logits = case.model.logits(params, hidden, masked.positions)
    return (
        masked_lm_loss_per_example(logits, masked.labels, masked.weights),
        masked_lm_loss(logits, masked.labels, masked.weights),
    )


def test_hidden_states_and_logits(case: Case) -> None:
    mask = case.array("attention_mask")
    hidden = jax.jit(case.model.encode)(case.params, case.array("corrupted_ids"), mask)
    case.assert_close(hidden, case.arrays["hidden"], 1e-5, "hidden")
    logits = jax.jit(case.model.logits)(case.params, hidden)
    case.assert_close(logits, case.arrays["logits"], 1e-5, "logits")


def test_masked_lm_loss(case: Case) -> None:
    per_example, total = mlm_losses(case, case.params)
    case.assert_close(per_example, case.arrays["mlm_per_example"], 1e-5, "mlm_per_example")
    case.assert_close(total, case.arrays["mlm"], 1e-5, "mlm")


def golden_losses(case: Case) -> importance.Losses:
    """The masked-LM loss of the golden corruption, as the importance pass wants it."""

    def per_example(method: Any, params: Params, batch: Batch, rng: Any, gates: Units) -> jax.Array:
        return mlm_losses(case, params, gates)[0]

    return replace(importance.LM, per_example=per_example)


def importance_batch(case: Case) -> tuple[DAS, Batch]:
    return DAS(case.model, case.undrawn, DASSettings()), case.batch()


def test_importance(case: Case) -> None:
    method, batch = importance_batch(case)
    rng, losses = jax.random.key(0), golden_losses(case)
    gradients = jax.jit(partial(importance.gate_gradients, method, losses))(case.params, batch, rng)
    sums = jax.jit(importance.GateGradientSums(method, losses))(case.params, batch, rng)
    raw = importance.raw_importance(sums)
    normalised = importance.normalise(raw.mean)
    accumulated = importance.accumulate(normalised, case.units("importance_previous"))
    for kind in Units._fields:
        for name, value in (
            ("gate_grad_per_example", gradients),
            ("importance_raw", raw.mean),
            ("importance", normalised),
            ("importance_accumulated", accumulated),
        ):
            name = f"{name}.{kind}"
            case.assert_close(getattr(value, kind), case.arrays[name], 1e-4, name)


def test_gated_view_and_contrastive_loss(case: Case) -> None:
    mask = case.array("attention_mask")
    gates = case.units("importance_accumulated")
    hidden = case.model.encode(case.params, case.array("input_ids"), mask, gates)
    case.assert_close(hidden, case.arrays["gated_hidden"], 1e-5, "gated_hidden")
    pooled = mean_pool(hidden, mask)
    case.assert_close(pooled, case.arrays["pooled_gated"], 1e-5, "pooled_gated")

    views = case.array("view1"), case.array("view2"), case.array("pooled_gated")
    loss, gradients = jax.value_and_grad(contrastive_loss, argnums=(0, 1, 2))(*views, 0.05)
    case.assert_close(loss, case.arrays["contrastive"], 1e-4, "contrastive")
    for name, gradient in zip(("view1", "view2", "gated"), gradients, strict=True):
        case.assert_close(
            gradient, case.arrays[f"contrastive_grad.{name}"], 1e-4, f"d contrastive / d {name}"
        )


def test_proxy_kl(case: Case) -> None:
    kl = proxy_kl_per_example(
        case.array("proxy_kl.hidden1"), case.array("proxy_kl.hidden2"), case.array("attention_mask")
    )
    case.assert_close(kl, case.arrays["proxy_kl.per_example"], 1e-5, "proxy_kl.per_example")


def test_gradients_and_soft_mask(case: Case) -> None:
    gradients = jax.jit(jax.grad(lambda params: mlm_losses(case, params)[1]))(case.params)
    transform = soft_mask(case.units("importance_accumulated"))
    masked, _ = transform.update(gradients, transform.init(case.params))
    for prefix, tree in (("grad.", gradients), ("soft_masked_grad.", masked)):
        tensors = case.tensors(tree)
        expected = case.named(prefix)
        assert set(tensors) == set(expected)
        largest = max(np.abs(value).max() for value in expected.values())
        for name, value in expected.items():
            # An exact zero (a key bias) is rounding noise relative to itself, so it is held to the
            # largest of all.
            scale = largest if name.endswith("key.bias") else np.abs(value).max()
            error = np.abs(tensors[name] - value).max() / scale
            assert error <= (1e-9 if case.dtype == jnp.float64 else 1e-4), (
                f"{prefix}{name}: {error:.2e}"
            )


@dataclass(frozen=True)
class GoldenDAS(DAS):
    """DAS on a corruption already drawn, without dropout: the batch's index says which."""

    corruptions: Drawn | None = None

    def loss(self, net: Net, memory: Any, batch: Batch, moment: Moment) -> Any:
        drawn = jax.tree.map(lambda x: x[batch.index], self.corruptions)
        return self.loss_of(net, memory, drawn, moment, keys=None)


@pytest.mark.parametrize(
    ("apply_to", "devices"), [("gradient", None), ("update", None), ("update", 5)]
)
def test_five_training_steps(case: Case, apply_to: Any, devices: int | None) -> None:
    tokens_SxBxT = case.array("train.input_ids")
    steps, rows, _ = tokens_SxBxT.shape
    corruptions = case.drawn_steps()
    sharding = None
    if devices is not None:
        shards = next(n for n in range(min(devices, rows), 0, -1) if rows % n == 0)
        if jax.device_count() < shards:
            pytest.skip(
                f"needs {shards} devices, fake ones as on the CPU; here is {jax.device_count()}"
            )
        sharding = make_sharding(shards)
    method = GoldenDAS(
        case.model,
        case.undrawn,
        DASSettings(soft_mask=SoftMaskSettings(apply_to=apply_to)),
        axis_name=None if sharding is None else sharding.batch,
        corruptions=corruptions,
    )
    optimizer = Optimizer(adamw(b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.01), lambda step: 1e-3)
    memory = DASMemory(case.units("importance_accumulated"))
    steps_of = recipe(method, optimizer)
    state = init_state(steps_of, case.params, memory, jax.random.key(0))
    if sharding is None:
        step = jax.jit(make_train_step(steps_of))
    else:
        # Donated buffers would be those of the case.
        state = sharding.replicate(jax.tree.map(jnp.copy, state))
        step = compile_train_step(steps_of, sharding)
    for s in range(steps):
        batch = Batch(tokens_SxBxT[s], jnp.arange(rows) + s * rows, jnp.ones(rows))
        if sharding is not None:
            batch = sharding.shard_batch(batch)
        state, metrics = step(state, batch)
        got = [metrics["loss"], metrics["masked_lm"], metrics["contrastive"]]
        case.assert_close(
            got, case.arrays[f"train.{apply_to}.losses"][s], 1e-5, f"losses of step {s}"
        )
    trained = case.tensors(state.params)
    for name, value in trained.items():
        if case.dtype == jnp.float32 and name.endswith("key.bias"):
            continue  # Its gradient is zero but for rounding noise, which Adam enlarges.
        case.assert_close(value, case.arrays[f"train.{apply_to}.final.{name}"], 1e-4, name)
