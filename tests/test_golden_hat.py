"""HAT against arrays made by an independent float64 implementation; see tests/golden/README.md."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from das_jax.data.batch import Batch
from das_jax.data.objective import Drawn
from das_jax.methods.contract import Moment, Place
from das_jax.methods.hard_attention import HATMemory, gates_of, regulariser
from das_jax.methods.hat import HAT, HATSettings
from das_jax.methods.net import Net
from das_jax.model.language_model import Params
from das_jax.model.plain import plain_params
from das_jax.model.units import Units, full_units
from das_jax.training.optimizer import Optimizer, adamw
from das_jax.training.step import Recipe, init_state, make_train_step
from tests.golden_case import Case

SETTINGS = HATSettings(smax=400, regularisation=0.75, clip=6)
LEARNED = 2
"""The domain that is learned, after two others."""


@dataclass(frozen=True)
class GoldenHAT(HAT):
    """HAT on a corruption already drawn, without dropout: the batch's index says which; s may be given."""

    corruptions: Drawn | None = None
    s: Any = None

    def slope(self, moment: Moment) -> Any:
        return super().slope(moment) if self.s is None else self.s

    def loss(self, net: Net, memory: Any, batch: Batch, moment: Moment) -> Any:
        drawn = jax.tree.map(lambda x: x[batch.index], self.corruptions)
        return self.loss_of(net, memory, drawn, moment, None)


@pytest.fixture
def hat_case(system_case: Case) -> Case:
    """The archive `hat` and the texts of `inputs`."""
    arrays = {**system_case.arrays, **system_case.of("hat").arrays}
    return replace(system_case, arrays=arrays)


def method_of(case: Case, s: Any = None) -> GoldenHAT:
    return GoldenHAT(case.model, case.undrawn, SETTINGS, corruptions=case.drawn("a."), s=s)


def moment(step: int = 0, steps: int = 10) -> Moment:
    return Moment(jnp.int32(LEARNED), jnp.int32(step), steps, jax.random.key(0))


def embedding(case: Case) -> dict[str, jax.Array]:
    return {kind: case.array(f"embedding.{kind}")[LEARNED] for kind in Units._fields}


def with_embedding(case: Case) -> Params:
    return {**case.params, "graft": {"embedding": embedding(case)}}


def memory_of(case: Case) -> HATMemory:
    return HATMemory(case.units("accumulated")._asdict(), case.units("embedding")._asdict())


def test_gates_and_how_they_close(hat_case: Case) -> None:
    case, method = hat_case, method_of(hat_case)
    steps = len(case.arrays["schedule"])
    slopes = [method.slope(moment(step, steps)) for step in range(steps)]
    case.assert_close(slopes, case.arrays["schedule"], 1e-6, "schedule")
    assert method.slope(moment(0, steps=1)) == SETTINGS.smax
    previous = case.units("previous")
    for i, s in enumerate(case.arrays["s"]):
        gates = gates_of(embedding(case), float(s), SETTINGS.smax)
        for kind, value in gates.items():
            case.assert_close(value, case.arrays[f"gates.{kind}"][i], 1e-5, f"gates.{kind} {s}")
    for kind, value in previous._asdict().items():
        highest = jnp.maximum(value[0], value[1])
        case.assert_close(highest, case.arrays[f"accumulated.{kind}"], 1e-6, f"accumulated.{kind}")


def test_loss_and_its_parts(hat_case: Case) -> None:
    case, s = hat_case, float(hat_case.arrays["s"][1])
    gates = gates_of(embedding(case), s, SETTINGS.smax)
    units = Units(**gates)
    drawn = case.drawn("a.")
    real = np.asarray(drawn.text.mask)

    def encoded(params: Params, gates: Units | None) -> tuple[jax.Array, jax.Array]:
        net = Net(case.model, params, gates)
        hidden = net.encode(drawn.text)
        return hidden, case.model.logits(params, hidden)

    for name, net in (
        ("gated", Net(case.model, case.params, units)),
        ("folded", Net(case.model, plain_params(case.model, case.params, units))),
    ):
        hidden, logits = jax.jit(encoded)(net.params, net.gates)
        case.assert_close(hidden[real], case.arrays["hidden"][real], 1e-5, f"{name} hidden")
        case.assert_close(logits[real], case.arrays["logits"][real], 1e-5, f"{name} logits")

    @jax.jit
    def losses(params: Params) -> Any:
        net = Net(case.model, params)
        return method_of(case, s).loss(net, memory_of(case), case.batch("a."), moment())

    loss, parts = losses(with_embedding(case))
    found = {"loss": loss, "mlm": parts["masked_lm"], "regulariser": parts["regulariser"]}
    for name, value in found.items():
        case.assert_close(value, case.arrays[name], 1e-5, name)
    nothing = full_units(case.model.architecture, 0.0, dtype=case.dtype)._asdict()
    case.assert_close(regulariser(gates, nothing), case.arrays["regulariser_first"], 1e-5, "first")


def test_gradients_and_what_scales_them(hat_case: Case) -> None:
    case, batch, memory = hat_case, hat_case.batch("a."), memory_of(hat_case)

    @jax.jit
    @jax.grad
    def gradients_of(params: Params, s: jax.Array) -> jax.Array:
        return method_of(case, s).loss(Net(case.model, params), memory, batch, moment())[0]

    for i, s in enumerate(case.arrays["s"]):
        gradients = gradients_of(with_embedding(case), jnp.asarray(s, case.dtype))
        for kind, value in gradients["graft"]["embedding"].items():
            name = f"embedding_grad_compensated.{i}.{kind}"
            case.assert_close(value, case.arrays[name], 1e-4, name)
        if i == 1:
            case.assert_tensors_close(case.tensors(gradients), "grad.")
    ones = jax.tree.map(jnp.ones_like, with_embedding(case))
    scale = method_of(case).transforms(memory, moment()).update
    scaled, _ = scale.update(ones, scale.init(ones))
    for name, value in case.tensors(scaled).items():
        case.assert_close(value, case.arrays[f"scale.{name}"], 1e-6, f"scale.{name}")
    for value in scaled["graft"]["embedding"].values():
        assert (value == 1).all()


@pytest.mark.parametrize("apply_to", ["gradient", "update"])
def test_four_training_steps(hat_case: Case, apply_to: Any) -> None:
    case, expected = hat_case, hat_case.of("hat_train").named(f"{apply_to}.")
    tokens_SxBxT = case.array("train.input_ids")
    steps, rows, _ = tokens_SxBxT.shape
    corruptions = case.drawn_steps()
    settings = replace(SETTINGS, apply_to=apply_to)
    method = GoldenHAT(case.model, case.undrawn, settings, corruptions=corruptions)
    plan = method.plan(Place(LEARNED, ("third",), (rows,)))
    optimizer = Optimizer(adamw(0.9, 0.999, 1e-8, 0.01, plan.decays), lambda step: 1e-3)
    recipe = Recipe(method, plan, optimizer, steps)
    state = init_state(
        recipe, with_embedding(case), memory_of(case), jax.random.key(0), domain=LEARNED
    )
    step = jax.jit(make_train_step(recipe))
    for s in range(steps):
        batch = Batch(tokens_SxBxT[s], jnp.arange(rows) + s * rows, jnp.ones(rows))
        state, metrics = step(state, batch)
        got = [metrics[name] for name in ("loss", "masked_lm", "regulariser")]
        case.assert_close(got, expected["losses"][s], 1e-5, f"losses of step {s}")
    for kind, value in state.params["graft"]["embedding"].items():
        case.assert_close(value, expected[f"embedding.{kind}"], 1e-4, f"embedding.{kind}")
    for name, value in case.tensors(state.params).items():
        if case.dtype == jnp.float32 and name.endswith("key.bias"):
            continue  # Its gradient is zero but for rounding noise, which Adam enlarges.
        case.assert_close(value, expected[f"final.{name}"], 1e-4, name)
