"""decay_to_start and ema, step by step, with a loss whose gradient is known."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from das_jax.data.batch import Batch
from das_jax.data.objective import HiddenTokens
from das_jax.errors import UserError
from das_jax.methods.contract import Learned, Memory, Method, Metrics, Moment, Plan, Transforms
from das_jax.methods.net import Net
from das_jax.methods.placeholder import is_placeholder
from das_jax.methods.policies.decay_to_start import DecayToStart
from das_jax.methods.policies.ema import EMA
from das_jax.methods.policy import Policy
from das_jax.methods.settings.policies import EMASettings
from das_jax.methods.settings.whole_model import NaiveSettings
from das_jax.model.language_model import LanguageModel, Params
from das_jax.training.optimizer import Optimizer
from das_jax.training.step import Recipe, init_state, make_train_step

START = {name: jnp.array([1.0, -2.0]) for name in ("free", "frozen", "pulled")}
TRAINS, DECAYS = (("frozen", False), (".*", True)), (("free", False), (".*", True))
RATE, LAMBDA, LEFT, SLOPE = 0.5, 0.25, 0.5, 3.0


class Sloping(Method):
    """A loss of the same slope everywhere, and a mask that leaves half of every update."""

    def loss(
        self, net: Net, memory: Memory, batch: Batch, moment: Moment
    ) -> tuple[jax.Array, Metrics]:
        return SLOPE * optax.tree.sum(net.params), {}

    def transforms(self, memory: Memory, moment: Moment) -> Transforms:
        return Transforms(update=optax.scale(LEFT))


@pytest.fixture
def method(model: LanguageModel, objective: HiddenTokens) -> Method:
    return Sloping(model, objective, NaiveSettings())


def domain(method: Method, index: int = 0, **plan: Any) -> Any:
    found = Plan(method.model, TRAINS, DECAYS)
    return SimpleNamespace(plan=dataclasses.replace(found, **plan), index=index, name="acl")


def trained(policy: Policy, params: Params, memory: Memory, steps: int) -> Any:
    """The state after some steps."""
    plan = domain(policy.method).plan
    recipe = Recipe(
        *(policy.method, plan, Optimizer(optax.identity(), lambda step: RATE), steps),
        policies=(policy,),
    )
    state = init_state(recipe, params, (), jax.random.key(0), 0, {policy.name: memory})
    step: Any = jax.jit(make_train_step(recipe))
    for _ in range(steps):
        state, _ = step(state, None)
    return state


def test_decay_to_the_start_is_as_weight_decay_is(method: Method) -> None:
    """Before the method's mask, on what weight decay pulls; what is frozen is not even carried."""
    policy = DecayToStart(method, LAMBDA)
    memory = policy.begin(Learned(START, ()), policy.init(START), domain(method), None)
    assert is_placeholder([memory.tree["frozen"], memory.tree["free"]])
    moved = jax.tree.map(lambda x: x + 4, START)
    later = policy.begin(Learned(moved, ()), memory, domain(method, 1), None)
    assert later is memory
    params = trained(policy, moved, later, 3).params
    expected = {name: np.asarray(x) for name, x in moved.items()}
    for _ in range(3):
        pull = LAMBDA * (expected["pulled"] - np.asarray(START["pulled"]))
        expected["pulled"] = expected["pulled"] - RATE * LEFT * (SLOPE + pull)
        expected["free"] = expected["free"] - RATE * LEFT * SLOPE
    for name, x in params.items():
        np.testing.assert_allclose(x, expected[name], rtol=1e-5, err_msg=name)


def test_where_every_domain_begins_from_the_base_that_is_its_start(method: Method) -> None:
    policy, fresh = DecayToStart(method, LAMBDA), jax.tree.map(lambda x: x + 4, START)
    memory = policy.begin(Learned(START, ()), policy.init(START), domain(method), None)
    from_base = domain(method, 1, start="base")
    later = policy.begin(Learned(fresh, ()), memory, from_base, None)
    np.testing.assert_array_equal(later.tree["pulled"], fresh["pulled"])
    for changed, trains in (
        ({**START, "pulled": jnp.ones(3)}, TRAINS),
        ({**START, "new": jnp.ones(2)}, TRAINS),
        (START, ((".*", True),)),
    ):
        with pytest.raises(
            UserError, match=r"^method\.name naive trains parameters in acl that were not there"
        ):
            policy.begin(Learned(changed, ()), memory, domain(method, 1, trains=trains), None)


@pytest.mark.parametrize("warmup", [False, True])
def test_the_average_of_a_domains_steps_is_what_it_ends_in(method: Method, warmup: bool) -> None:
    policy = EMA(method, EMASettings(decay=0.25, warmup=warmup))
    memory = policy.begin(Learned(START, ()), policy.init(START), domain(method), None)
    state = trained(policy, START, memory, 4)
    nothing: Any = None
    learned, after = policy.end(
        Learned(state.params, ()), state.policies["ema"], domain(method), nothing
    )
    assert is_placeholder(after.tree)
    assert is_placeholder(state.policies["ema"].tree["frozen"])
    moved = RATE * LEFT * SLOPE
    average = 0.0
    for k in range(4):
        decay = min(0.25, (1 + k) / (10 + k)) if warmup else 0.25
        average = decay * average + (1 - decay) * (k + 1) * moved
    for name, start in START.items():
        expected = start if name == "frozen" else start - average
        np.testing.assert_allclose(learned.params[name], expected, rtol=1e-5, err_msg=name)
