"""What gates in a graft promise: the model is frozen, used units stay as they are, a domain keeps its own."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from das_jax.data.batch import Batch
from das_jax.data.objective import HiddenTokens, Text
from das_jax.methods.bcl import BCL
from das_jax.methods.classic import CLASSIC
from das_jax.methods.contract import Cost, Learned, Moment, Place, Plan
from das_jax.methods.cpt import CPT
from das_jax.methods.gated_graft import GatedGraft
from das_jax.methods.hard_attention import HATMemory
from das_jax.methods.hat_adapter import HATAdapter
from das_jax.methods.net import Net
from das_jax.methods.settings.gates import (
    BCLSettings,
    CLASSICSettings,
    CPTSettings,
    HATAdapterSettings,
)
from das_jax.model.grafts.adapter import Adapter
from das_jax.model.grafts.graft import without_graft
from das_jax.model.language_model import LanguageModel, Params
from das_jax.model.units import parameter_paths
from das_jax.planning import price
from das_jax.planning.architectures import KNOWN
from das_jax.training.optimizer import Optimizer, adamw
from das_jax.training.sharding import make_sharding
from das_jax.training.step import Recipe, compile_train_step, first_state

BINARY = 6.0
"""|e| whose gate at smax is 0 or 1 in float32."""

STEPS = 3


class Case(NamedTuple):
    """A method and its settings."""

    method: type[GatedGraft]
    settings: Any

    def __str__(self) -> str:
        return self.settings.name


CASES = [
    Case(HATAdapter, HATAdapterSettings(bottleneck=5)),
    Case(CPT, CPTSettings(attention=3, feed_forward=5)),
    Case(CLASSIC, CLASSICSettings(bottleneck=5)),
    Case(BCL, BCLSettings(bottleneck=5, features=4)),
]


@dataclass
class FakeDomain:
    """All that these methods ask of one."""

    index: int
    plan: Plan

    @property
    def rng(self) -> jax.Array:
        return jax.random.key(10 + self.index)


@dataclass
class FakeHistory:
    """Two stages, what the last of them left, and how well each net explains a text."""

    last: Learned
    model: LanguageModel
    fits: Sequence[float] = ()
    domains: tuple[tuple[str, ...], ...] = (("first",), ("second",))

    def base(self) -> Net:
        return Net(self.model, {"base": jnp.zeros(1)})

    def learned(self, stage: int) -> Learned:
        assert stage == -1
        return self.last

    def losses(self, nets: Sequence[Net]) -> list[float]:
        assert "base" in nets[0].params
        return [*self.fits]


def logits(net: Net, batch: Batch) -> np.ndarray:
    @jax.jit
    def run(params: Params) -> jax.Array:
        each = net._replace(params=params)
        text = Text(batch.tokens, each.model.mask(batch.tokens))
        return each.model.logits(params, each.encode(text))

    return np.asarray(run(net.params))


@functools.cache
def step_of(recipe: Recipe) -> Any:
    return compile_train_step(recipe, make_sharding(1))


def trained(method: GatedGraft, learned: Learned, index: int, batch: Batch) -> Params:
    """The parameters after a few steps with weight decay."""
    sharding, plan = make_sharding(1), method.plan(Place(index, (str(index),), (8,)))
    # Adam turns rounding noise around zero into steps unless epsilon is larger than the noise.
    optimizer = Optimizer(adamw(0.9, 0.999, 1e-4, 0.1, plan.decays), _rate)
    recipe = Recipe(method, plan, optimizer, STEPS)
    rng = sharding.replicate(jax.random.key(3))
    state = first_state(recipe, sharding, learned.params, learned.memory, rng, domain=index)
    for _ in range(STEPS):
        state, _ = step_of(recipe)(state, sharding.shard_batch(batch))
    return sharding.fetch(state.params)


def _rate(step: jax.Array) -> float:
    return 1e-2


def plan_of(method: GatedGraft, index: int) -> Plan:
    return method.plan(Place(index, (str(index),), (8,)))


def with_embedding(learned: Learned, change: Any) -> Learned:
    graft = learned.params["graft"]
    embedding = jax.tree.map(change, graft["embedding"])
    return learned._replace(params={**learned.params, "graft": {**graft, "embedding": embedding}})


def begun(method: GatedGraft, learned: Learned, index: int) -> Learned:
    domain: Any = FakeDomain(index, plan_of(method, index))
    return method.begin(learned, domain)


def second_domain(method: GatedGraft, params: Params) -> tuple[Learned, Net]:
    """What is there before the second domain, and who served the first: gates that serve are 0 or 1, and
    weights have learned something.
    """
    learned = begun(method, Learned(params, method.init(params)), 0)
    if not method.binary:
        learned = with_embedding(learned, lambda e: BINARY * jnp.sign(e))
    graft = dict(learned.params["graft"])
    embedding = graft.pop("embedding")
    moved = jax.tree.map(lambda x: x + 0.1 * jnp.cos(jnp.arange(x.size)).reshape(x.shape), graft)
    learned = learned._replace(
        params={**learned.params, "graft": {**moved, "embedding": embedding}}
    )
    served = method.net(learned, plan_of(method, 0))
    learned = method.end(learned, FakeDomain(0, plan_of(method, 0)))  # type: ignore[arg-type]
    return begun(method, learned, 1), served


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_first_domain_is_what_it_was_after_the_second(
    model: LanguageModel, objective: HiddenTokens, params: Params, batch: Batch, case: Case
) -> None:
    method = case.method(model, objective, case.settings, "data")
    learned, first = second_domain(method, params)
    after = trained(method, learned, 1, batch)
    jax.tree.map(np.testing.assert_array_equal, without_graft(after), jax.device_get(params))
    old, new = (x["graft"] for x in (jax.device_get(learned.params), after))
    for path, a, b in zip(parameter_paths(new), *map(jax.tree.leaves, (old, new)), strict=True):
        if "kernel" in path or "embedding" in path:
            still = "capsules/0" in path
            assert (np.abs(a - b).max() == 0) == still, path
    learned = method.end(
        learned._replace(params=after),
        FakeDomain(1, plan_of(method, 1)),  # type: ignore[arg-type]
    )
    history: Any = FakeHistory(learned, model)
    now, second = (method.view(history, name, history) for name in ("first", "second"))
    before = logits(first, batch)
    np.testing.assert_array_equal(logits(now, batch), before)
    own = logits(method.net(learned, plan_of(method, 1)), batch)
    np.testing.assert_array_equal(logits(second, batch), own)
    assert np.abs(own - before).max() > 1e-3


@pytest.mark.parametrize("case", CASES, ids=str)
def test_with_every_unit_used_only_e_moves(
    model: LanguageModel, objective: HiddenTokens, params: Params, batch: Batch, case: Case
) -> None:
    method = case.method(model, objective, case.settings, "data")
    learned, _ = second_domain(method, params)
    memory = learned.memory._replace(
        accumulated=jax.tree.map(jnp.ones_like, learned.memory.accumulated)
    )
    after = trained(method, learned._replace(memory=memory), 1, batch)["graft"]
    before = jax.device_get(learned.params["graft"])
    closed = {
        leaf.path.removeprefix("graft/")
        for leaf in method.leaves(method.grafted(1))
        if any(leaf.sides)
    }
    assert len(closed) == 8
    for path, a, b in zip(
        parameter_paths(before), *map(jax.tree.leaves, (before, after)), strict=True
    ):
        if path in closed:
            np.testing.assert_array_equal(a, b, path)
        if path.startswith("embedding/"):
            assert (a != b).mean() > 0.5, "all but those of units behind a relu that gives nothing"


def test_a_text_of_no_domain_gets_the_nearest(
    model: LanguageModel, objective: HiddenTokens, params: Params
) -> None:
    method = HATAdapter(model, objective, HATAdapterSettings(bottleneck=5))
    learned, first = second_domain(method, params)
    learned = method.end(learned, FakeDomain(1, plan_of(method, 1)))  # type: ignore[arg-type]

    def view(*fits: float) -> Any:
        history: Any = FakeHistory(learned, model, fits)
        return method.view(history, None, history)

    jax.tree.map(np.testing.assert_array_equal, view(1, 0.5, 0.7).params, first.params)
    second = method.net(learned, plan_of(method, 1)).params
    jax.tree.map(np.testing.assert_array_equal, view(1, 0.5, 0.5).params, second)
    assert "base" in view(0.4, 0.5, 0.7).params
    assert view(1, 0.5, 0.7).model == replace(model, graft=Adapter(5, "houlsby_alone"))


def test_a_step_draws_some_of_the_earlier_domains(
    model: LanguageModel, objective: HiddenTokens
) -> None:
    """Each of them in time, never one twice, and never the current one."""
    method = CLASSIC(model, objective, CLASSICSettings(bottleneck=5, views=2))
    rows = {kind: jnp.arange(4.0)[:, None, None] for kind in method.units}
    drawn = set()
    for step in range(20):
        moment = Moment(jnp.int32(3), jnp.int32(step), 20, jax.random.key(0))
        first, *others = (
            tuple(x.ravel().tolist())
            for x in method.looked_at(HATMemory({}, rows), moment).values()
        )
        assert all(each == first for each in others)
        drawn.add(first)
    assert drawn == {(0, 1), (0, 2), (1, 2)}
    assert [plan_of(method, number).cost for number in range(4)] == [
        Cost(forward=views) for views in (0, 1, 2, 2)
    ]


def test_a_view_costs_a_pass_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside plain training, which has no views."""
    found = {}
    for settings, method in ((HATAdapterSettings, HATAdapter), (CLASSICSettings, CLASSIC)):
        monkeypatch.setattr(price, "METHODS", {settings: method})
        found |= price.prices(price.usual_config(), KNOWN["FacebookAI/roberta-base"])
    flops = {name: each.flops for name, each in found.items() if isinstance(each, price.Price)}
    assert flops["classic"] - flops["hat_adapter"] == pytest.approx(1 / 3, rel=0.1)
