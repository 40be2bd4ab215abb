"""DEMix: who serves what, and what an expert begins with; its arithmetic is compared in the golden tests."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from das_jax.data.batch import Batch
from das_jax.data.objective import HiddenTokens
from das_jax.methods.contract import Learned, Place
from das_jax.methods.demix import DEMix
from das_jax.methods.net import Mixture, Net
from das_jax.methods.partition import partition
from das_jax.methods.settings.grafts import DEMixSettings
from das_jax.model.language_model import LanguageModel, Params
from das_jax.model.units import parameter_paths
from das_jax.training.heldout import SEED, HeldoutSums, TokenLosses, log_likelihoods, mixture_sums


class Stages:
    """A history of nets, and a text that knows how it likes each."""

    def __init__(self, base: Net, nets: Sequence[Net], losses: Sequence[float] = ()) -> None:
        self.nets = [base, *nets]
        self.domains = tuple((name,) for name in ("law", "news", "code")[: len(nets)])
        self.found = dict(zip(map(id, self.nets), losses, strict=False))
        self.likelihood_NxE = np.empty(0)
        self.asked: list[int] = []

    def base(self) -> Net:
        return self.nets[0]

    def net(self, stage: int) -> Net:
        return self.nets[1:][stage]

    def losses(self, nets: Sequence[Net]) -> list[float]:
        return [self.found[id(net)] for net in nets]

    def log_likelihoods(self, nets: Sequence[Net], examples: int = 1000) -> np.ndarray:
        self.asked.append(examples)
        return self.likelihood_NxE[:examples]


@pytest.fixture
def method(model: LanguageModel, objective: HiddenTokens) -> DEMix:
    return DEMix(model, objective, DEMixSettings())


def nets(model: LanguageModel, count: int) -> list[Net]:
    return [Net(model, {"number": jnp.int32(n)}) for n in range(count)]


def test_the_feed_forward_weights_are_the_domains_own(method: DEMix, params: Params) -> None:
    plan = method.plan(Place(0, ("law",), (9,)))
    trained, shared = partition(params, plan.trains)
    assert set(parameter_paths(trained)) == {
        f"layers/feed_forward/{part}/{leaf}"
        for part in ("intermediate", "output")
        for leaf in ("kernel", "bias")
    }
    assert len(parameter_paths(shared)) == len(parameter_paths(params)) - 4


@pytest.mark.parametrize(
    ("losses", "nearest"), [((3.0, 2.0, 4.0), 1), ((3.0, 3.5, 4.0), 0), ((3.0, 3.0, 3.0), 2)]
)
def test_an_expert_begins_as_the_one_that_knows_the_text_best(
    method: DEMix, model: LanguageModel, losses: tuple[float, ...], nearest: int
) -> None:
    """The base's own counts, too; of equal ones the latest."""
    base, *learned = nets(model, 3)
    history = Stages(base, learned, losses)
    domain: Any = SimpleNamespace(history=history, texts=history, name="code")
    begun = method.begin(Learned(learned[-1].params, ()), domain)
    assert begun.params["number"] == nearest


def test_a_learned_domain_has_its_own_expert_and_others_the_mixture(
    method: DEMix, model: LanguageModel
) -> None:
    base, *learned = nets(model, 3)
    history = Stages(base, learned)
    assert method.view(history, "law", history) is learned[0]
    assert method.view(history, "news", history) is learned[1]
    assert history.asked == []
    # The last of the 100 chunks that are asked for is sure of itself, and what comes after does not count.
    history.likelihood_NxE = np.zeros((102, 3), np.float32)
    history.likelihood_NxE[99] = [0, 500, 0]
    history.likelihood_NxE[100:] = [500, 0, 0]
    found = method.view(history, "code", history)
    assert isinstance(found, Mixture)
    assert history.asked == [100]
    np.testing.assert_allclose(found.weights, [0.1, 0.8, 0.1], rtol=1e-5)
    assert found.best is learned[0]
    assert method.view(Stages(base, []), None, history) is base


def test_the_mixture_may_serve_learned_domains_too(
    model: LanguageModel, objective: HiddenTokens
) -> None:
    mixing = DEMix(model, objective, DEMixSettings(known="mixture"))
    base, *learned = nets(model, 2)
    history = Stages(base, learned)
    history.likelihood_NxE = np.zeros((7, 2), np.float32)
    found = mixing.view(history, "law", history)
    assert isinstance(found, Mixture)
    np.testing.assert_allclose(found.weights, [0.5, 0.5], rtol=1e-6)


def test_identical_experts_are_the_base(
    method: DEMix, model: LanguageModel, objective: HiddenTokens, params: Params, batch: Batch
) -> None:
    """The posterior is the prior, and the mixture says what the base says."""
    rng = jax.random.key(SEED)
    tokens = jax.device_get(jax.jit(TokenLosses(model, objective, 8))(params, batch, rng))
    prior = method.prior(np.stack([log_likelihoods(tokens)] * 3, axis=-1))
    np.testing.assert_allclose(prior, [1 / 3] * 3, rtol=1e-6)
    mixed = mixture_sums(np.stack([tokens] * 3), prior)
    alone = jax.jit(HeldoutSums(model, objective))(params, batch, rng)
    np.testing.assert_allclose(mixed, alone, rtol=1e-6)
