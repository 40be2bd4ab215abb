"""The method and the graft of docs/writing_a_method.md, run as they stand there."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from das_jax.data.batch import Batch
from das_jax.data.objective import HiddenTokens, Text
from das_jax.methods.contract import Learned, Moment, Place
from das_jax.methods.naive import Naive
from das_jax.methods.net import Net
from das_jax.methods.settings import every_method, whole_model
from das_jax.model.language_model import LanguageModel, Params
from das_jax.training.method_check import check_method
from das_jax.training.optimizer import Optimizer
from das_jax.training.step import Recipe, init_state, make_train_step

PAGE = Path(__file__).parents[2] / "docs" / "writing_a_method.md"
BLOCKS = [block.split("```")[0] for block in PAGE.read_text().split("```python\n")[1:]]
MOMENT = Moment(jnp.int32(0), jnp.int32(0), 1, jax.random.key(3))


def executed(text: str, names: dict[str, Any]) -> dict[str, Any]:
    """The names after a block of the page, the one that holds a text."""
    (code,) = (block for block in BLOCKS if text in block)
    assert len(code.strip().splitlines()) < 40
    exec(compile(code, PAGE.name, "exec"), names)
    return names


@pytest.fixture
def stay(monkeypatch: pytest.MonkeyPatch) -> Any:
    names = executed("class StaySettings", {**vars(whole_model), **vars(every_method)})
    monkeypatch.setattr(whole_model, "StaySettings", names["StaySettings"], raising=False)
    return SimpleNamespace(**executed("class Stay(Method)", names))


def test_the_method_pulls_towards_where_the_domain_began(
    stay: Any, model: LanguageModel, params: Params, objective: HiddenTokens, batch: Batch
) -> None:
    method = stay.Stay(model, objective, stay.StaySettings(strength=0.5))
    memory = method.begin(Learned(params, method.init(params)), None).memory
    moved = jax.tree.map(lambda x: x + 0.25, params)
    net, count = Net(model, moved), sum(x.size for x in jax.tree.leaves(params))
    loss, parts = jax.jit(lambda m: method.loss(net, m, batch, MOMENT))(memory)
    plain, _ = jax.jit(lambda: Naive(model, objective, None).loss(net, (), batch, MOMENT))()
    assert float(parts["distance"]) == pytest.approx(count / 16, rel=1e-4)
    assert float(loss) == pytest.approx(float(plain) + count / 32, rel=1e-4)


@pytest.mark.slow
def test_the_method_is_the_same_on_several_devices(stay: Any) -> None:
    check_method(stay.Stay, stay.StaySettings())


@pytest.fixture
def rescale(model: LanguageModel, objective: HiddenTokens) -> Any:
    names = executed("class Rescale(Grafted)", executed("class Rescaling(Graft)", {}))
    wanted = SimpleNamespace(mode="sequential", start=None, learning_rate=None)
    return names["Rescale"](model, objective, wanted)


def test_the_graft_changes_nothing_at_first_and_is_merged_exactly(
    rescale: Any, model: LanguageModel, params: Params, batch: Batch
) -> None:
    domain: Any = SimpleNamespace(rng=jax.random.key(0))
    grafted = rescale.begin(Learned(params, ()), domain).params
    plan = rescale.plan(Place(0, ("one",), (8,)))

    def encoded(net: Net) -> np.ndarray:
        text = Text(batch.tokens, model.mask(batch.tokens))
        return np.asarray(jax.jit(lambda p: net._replace(params=p).encode(text))(net.params))

    before = encoded(Net(model, params))
    np.testing.assert_array_equal(encoded(Net(plan.model, grafted)), before)
    scaled = {**grafted, "graft": jax.tree.map(lambda x: x * 1.5, grafted["graft"])}
    after = encoded(Net(plan.model, scaled))
    assert np.abs(after - before).max() > 0.05
    np.testing.assert_allclose(
        encoded(rescale.net(Learned(scaled, ()), plan)), after, rtol=1e-5, atol=1e-5
    )


def test_only_the_graft_is_trained(rescale: Any, params: Params, batch: Batch) -> None:
    domain: Any = SimpleNamespace(rng=jax.random.key(0))
    grafted = rescale.begin(Learned(params, ()), domain).params
    plan = rescale.plan(Place(0, ("one",), (8,)))
    recipe = Recipe(rescale, plan, Optimizer(optax.trace(0.9), lambda step: 0.1))
    state = init_state(recipe, grafted, (), jax.random.key(3))
    new, _ = jax.jit(make_train_step(recipe))(state, batch)
    for name in params:
        for x, old in zip(
            jax.tree.leaves(new.params[name]), jax.tree.leaves(params[name]), strict=True
        ):
            np.testing.assert_array_equal(x, old)

    def loss(scale: float, moved: Params) -> float:
        graft = jax.tree.map(lambda x, d: x + scale * d, grafted["graft"], moved)
        net = Net(plan.model, {**grafted, "graft": graft})
        return float(
            jax.jit(lambda p: rescale.loss(net._replace(params=p), (), batch, MOMENT)[0])(
                net.params
            )
        )

    # One step of a tenth of the gradient moves the loss by a tenth of its square.
    moved = jax.tree.map(lambda x, old: x - old, new.params["graft"], grafted["graft"])
    square = optax.tree.norm(moved, squared=True) / 0.1
    slope = (loss(0.01, moved) - loss(-0.01, moved)) / 0.02
    assert slope == pytest.approx(-float(square), rel=2e-2)
    stored = jax.tree.leaves(state.opt_state)
    assert sum(x.size for x in stored) == sum(x.size for x in jax.tree.leaves(grafted["graft"]))
