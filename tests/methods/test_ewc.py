"""EWC as the engine calls it, against golden arrays: what it measures after a domain, and how it pulls."""

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pydantic
import pytest

from das_jax.data.batch import Batch
from das_jax.data.objective import HiddenTokens
from das_jax.methods.contract import Learned, Memory, Moment, UpdateTrace
from das_jax.methods.ewc import EWC
from das_jax.methods.settings.whole_model import EWCSettings
from das_jax.model.language_model import LanguageModel, Params
from das_jax.training import sharding as sharding_module
from das_jax.training.accumulate import accumulate
from das_jax.training.optimizer import Optimizer
from das_jax.training.sharding import make_sharding
from das_jax.training.step import first_state, recipe
from tests.golden_case import Case

compiled = functools.cache(jax.jit)
"""One program for equal functions."""


@dataclass
class Text:
    """A domain that is the text of one batch."""

    batch: Batch
    index: int = 0
    name: str = "text"
    rng: Any = field(default_factory=lambda: jax.random.key(0))
    said: list[str] = field(default_factory=list)

    def accumulate(
        self, function: Callable[..., Any], params: Params, rng: jax.Array, **how: Any
    ) -> Any:
        assert how["split"], "as large as the parameters"
        return compiled(function)(params, self.batch, rng)

    def log(self, sentence: Any) -> None:
        self.said.append(sentence())


def trace_at(params: Params) -> UpdateTrace:
    return UpdateTrace(params, params, params, params, optax.identity(), ())


def percents(case: Case) -> list[float]:
    """Of the first domain's F, in the embeddings, each layer and the LM head."""
    layers = range(case.model.architecture.num_layers)
    marks = [".embeddings.", *(f".layer.{layer}." for layer in layers), ""]
    found = dict.fromkeys(marks, 0.0)
    for name, value in case.named("fisher_a.").items():
        found[next(mark for mark in marks if mark in name)] += float(np.sum(value))
    return [100 * share / sum(found.values()) for share in found.values()]


def test_gamma_is_given_where_it_is_used() -> None:
    assert EWCSettings(accumulate="online", gamma=0.5).gamma == 0.5
    with pytest.raises(pydantic.ValidationError, match="needs accumulate: online"):
        EWCSettings(gamma=0.5)


@pytest.mark.slow
def test_it_measures_and_pulls_as_the_golden_arrays_say(system_case: Case) -> None:
    case, theta = system_case.of("ewc"), system_case.of("theta").params_from()
    texts = [Text(system_case.batch(prefix)) for prefix in ("a.", "b.")]
    objective = system_case.objective("a.", "b.")
    mean, online = (
        EWC(case.model, objective, EWCSettings(accumulate=each)) for each in ("mean", "online")
    )
    first = mean.end(Learned(case.params, mean.init(case.params)), texts[0])

    @jax.jit
    def pull(memory: Memory, params: Params, gradient: Params) -> tuple[jax.Array, Params]:
        moment = Moment(jnp.int32(1), jnp.int32(0), 1, jax.random.key(0))
        transform = mean.transforms(memory, moment).gradient
        pulled, _ = transform.update(gradient, transform.init(params), params)
        return mean.observe(memory, trace_at(params))["penalty"], pulled

    (said,) = texts[0].said
    assert [*map(int, re.findall(r"(\d+)%", said))] == pytest.approx(percents(case), abs=0.51)
    zeros = jax.tree.map(jnp.zeros_like, theta)
    penalty, gradient = pull(first.memory, theta, zeros)
    case.assert_close(penalty, case.arrays["penalty"], 1e-5, "penalty")
    case.assert_tensors_close(case.tensors(gradient), "penalty_grad.", key_bias=(1e-12, 1e-28))
    for nothing in jax.tree.leaves(pull(first.memory, case.params, zeros)):
        assert not nothing.any(), "at the anchor"
    penalty, unchanged = pull(mean.init(case.params), theta, gradient)
    assert penalty == 0, "in the first domain"
    chex.assert_trees_all_equal(unchanged, gradient)

    def of(learned: Learned) -> dict[str, Any]:
        return case.tensors(learned.memory.fisher.tree)

    noise = {"key_bias": (1e-14, 1e-30)}
    case.assert_tensors_close(of(first), "fisher_a.", **noise)
    for method in (mean, online):
        second = method.end(Learned(theta, first.memory), texts[1])
        name = method.settings.accumulate
        case.assert_tensors_close(of(second), f"fisher_{name}.", **noise)
        chex.assert_trees_all_equal(second.memory.anchor.tree, theta)
        assert second.memory.domains == 2


@pytest.mark.slow
def test_what_it_carries_is_nowhere_whole(
    model: LanguageModel,
    params: Params,
    objective: HiddenTokens,
    batch: Batch,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither before a step nor after a measurement."""
    monkeypatch.setattr(sharding_module, "SMALLEST_SPLIT", 2)
    sharding = make_sharding(8, "parameters")
    method = EWC(model, objective, EWCSettings(), sharding.batch)
    plain = recipe(method, Optimizer(optax.identity(), lambda step: 1.0))
    rng = sharding.replicate(jax.random.key(0))
    memory = method.init(sharding.put("params", params))
    state = first_state(plain, sharding, params, memory, rng)

    class Mesh(Text):
        def accumulate(self, function: Any, params: Params, rng: jax.Array, **how: Any) -> Any:
            rows = [self.batch._asdict()]
            return accumulate(function, params, rng, rows, sharding, how["split"])

    domain = Mesh(batch, rng=rng)
    ended = method.end(Learned(state.params, sharding.fetch_whole(state.memory)), domain)
    for memory in (state.memory, ended.memory):
        for tree in (memory.fisher.tree, memory.anchor.tree):
            for place, x in zip(
                jax.tree.leaves(sharding.places("opt_state", params)),
                jax.tree.leaves(tree),
                strict=True,
            ):
                assert x.sharding.is_equivalent_to(place, x.ndim)
    assert any(not x.sharding.is_fully_replicated for x in jax.tree.leaves(ended.memory))
