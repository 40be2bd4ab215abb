"""What holds of every graft, on a tiny model with dropout."""

from dataclasses import dataclass, replace
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from das_jax.data.batch import Batch
from das_jax.errors import UserError
from das_jax.model.classifier import Classifier
from das_jax.model.grafts.adapter import Adapter
from das_jax.model.grafts.blocks import Blocks
from das_jax.model.grafts.graft import Graft
from das_jax.model.grafts.lora import TARGETS, LoRA
from das_jax.model.grafts.prompt import Prompt
from das_jax.model.language_model import LanguageModel, Params
from das_jax.model.leaves import Leaf, Leaves
from das_jax.model.units import full_units

SITES = tuple(site for site in TARGETS if site != "gate")
"""Of a BERT, whose feed-forward has no gate."""

GRAFTS = {
    "adapter": Adapter(3),
    "lora": LoRA(2, 6.0, SITES),
    "blocks": Blocks(1),
    "prompt": Prompt(2),
}


STARTS = {
    **GRAFTS,
    "pfeiffer": Adapter(3, "pfeiffer"),
    "parallel": Adapter(3, "parallel", 4.0),
}
"""Those that differ from one above in little else than in how they begin, too."""


@pytest.fixture(params=GRAFTS)
def graft(request: pytest.FixtureRequest) -> Graft:
    return GRAFTS[request.param]


def with_graft(model: LanguageModel, params: Params, graft: Graft) -> tuple[LanguageModel, Params]:
    """The grafted model and its parameters at the start."""
    own = graft.init(model.architecture, jax.random.key(1), params)
    return replace(model, graft=graft), {**params, "graft": own}


def moved(params: Params) -> Params:
    """With a graft that has learnt something."""
    leaves, treedef = jax.tree.flatten(params["graft"])
    keys = jax.random.split(jax.random.key(2), len(leaves))
    own = [x + 0.1 * jax.random.normal(key, x.shape) for x, key in zip(leaves, keys, strict=True)]
    return {**params, "graft": jax.tree.unflatten(treedef, own)}


def logits(model: LanguageModel, params: Params, batch: Batch) -> np.ndarray:
    @jax.jit
    def run(params: Params) -> jax.Array:
        return model.logits(params, model.encode(params, batch.tokens, model.mask(batch.tokens)))

    return np.asarray(run(params))


@pytest.mark.parametrize("graft", STARTS.values(), ids=STARTS)
def test_at_the_start_the_model_is_what_it_was(
    model: LanguageModel, params: Params, batch: Batch, graft: Graft
) -> None:
    expected = logits(model, params, batch)
    actual = logits(*with_graft(model, params, graft), batch)
    if graft in (STARTS["adapter"], STARTS["pfeiffer"]):
        # Their matrices are small, not 0: or U would keep D from learning.
        change = np.abs(actual - expected).max()
        assert 0 < change < 0.02
    elif graft.prefix:
        assert np.abs(actual - expected).max() > 1e-2  # It is attended to.
    else:
        np.testing.assert_array_equal(actual, expected)


def test_the_model_s_own_parameters_do_not_depend_on_the_graft(
    model: LanguageModel, params: Params, graft: Graft
) -> None:
    grown = jax.jit(replace(model, graft=graft).init)(jax.random.key(0))
    own = grown.pop("graft")
    # But for rounding: a graft that copies a part of them is another program.
    chex.assert_trees_all_close(grown, params, rtol=1e-6)
    assert len({len(x) for x in jax.tree.leaves(own)}) == 1


def gradient(model: LanguageModel, params: Params, batch: Batch) -> Params:
    """Of something that every parameter of the graft moves, dropout on and units gated."""
    mask = model.mask(batch.tokens)
    keys = batch.example_keys(jax.random.key(0))
    gates = full_units(model.architecture, 0.5)

    @jax.jit
    @jax.grad
    def run(own: Params) -> jax.Array:
        hidden = model.encode({**params, "graft": own}, batch.tokens, mask, gates, keys)
        return jnp.sum(hidden * jnp.cos(jnp.arange(hidden.size).reshape(hidden.shape)))

    return run(params["graft"])


def test_how_layers_are_computed_does_not_change_the_gradient(
    model: LanguageModel, params: Params, batch: Batch, graft: Graft
) -> None:
    grafted, params = with_graft(model, params, graft)
    params = moved(params)
    expected = gradient(grafted, params, batch)
    ways: list[dict[str, Any]] = [{"remat": "selective"}]
    if graft.every is not None:  # Whose loops are its own.
        ways.append({"remat": "full", "unrolled": True})
    largest = max(np.abs(x).max() for x in jax.tree.leaves(expected))
    for how in ways:
        actual = gradient(replace(grafted, **how), params, batch)
        for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, e, atol=1e-6 * largest)
            assert np.abs(e).max() > 0


def test_matrices_are_multiplied_in_the_model_s_type(
    model: LanguageModel, params: Params, batch: Batch, graft: Graft
) -> None:
    grafted, params = with_graft(model, params, graft)
    params = moved(params)
    expected = logits(grafted, params, batch)
    low = replace(grafted, dtype=jnp.bfloat16)
    hidden = low.encode(params, batch.tokens, model.mask(batch.tokens))
    assert hidden.dtype == jnp.bfloat16
    difference = np.abs(logits(low, params, batch) - expected).max() / np.abs(expected).max()
    assert 1e-5 < difference < 0.05


def test_a_merged_model_is_the_grafted_one(
    model: LanguageModel, params: Params, batch: Batch, graft: Graft
) -> None:
    grafted, params = with_graft(model, params, graft)
    before = jax.tree.map(jnp.copy, params)
    params = moved(params)
    merged = graft.merged(params)
    chex.assert_trees_all_equal(params["layers"], before["layers"])
    if merged is None:
        assert not isinstance(graft, LoRA)
        return
    expected = logits(grafted, params, batch)
    np.testing.assert_allclose(
        logits(model, merged, batch), expected, atol=1e-5 * np.abs(expected).max()
    )
    assert np.abs(logits(model, params, batch) - expected).max() > 1e-2


@dataclass(frozen=True)
class Scaling(Graft):
    """Multiplies what comes out at one site."""

    site: str

    def at(self, site: str, params: Params, input: jax.Array, output: jax.Array) -> jax.Array:
        return params["factor"].astype(output.dtype) * output if site == self.site else output

    def leaves(self) -> Leaves:
        return (Leaf("graft/factor", "L"),)


@pytest.mark.parametrize(
    ("site", "module"),
    [(site, target.path) for site, target in TARGETS.items() if site in SITES],
)
def test_a_site_behind_a_projection_stands_for_the_projection(
    model: LanguageModel, params: Params, batch: Batch, site: str, module: tuple[str, str]
) -> None:
    """A graft that doubles what a projection gives, bias included, is a projection twice as large."""
    factors = jnp.array([2.0, 1.0])  # In the first layer only.
    sublayer, name = module
    larger = jax.tree.map(lambda x: x, params)
    larger["layers"][sublayer][name] = jax.tree.map(
        lambda x: x * factors.reshape(-1, *(1 for _ in x.shape[1:])),
        larger["layers"][sublayer][name],
    )
    grafted = replace(model, graft=Scaling(site))
    actual = logits(grafted, {**params, "graft": {"factor": factors}}, batch)
    np.testing.assert_allclose(actual, logits(model, larger, batch), atol=1e-5)


def test_a_classifier_keeps_the_graft(
    model: LanguageModel, params: Params, batch: Batch, graft: Graft
) -> None:
    grafted, params = with_graft(model, params, graft)
    params = moved(params)
    mask, types = batch.tokens != 1, jnp.zeros_like(batch.tokens)
    answers = []
    for each in (grafted, model):
        classifier = Classifier(each, 3)
        started = classifier.init(params, jax.random.key(0))
        chex.assert_trees_all_equal(started["graft"], params["graft"])
        answers.append(classifier.logits(started, batch.tokens, mask, types))
    assert np.abs(answers[0] - answers[1]).max() > 1e-3


def test_blocks_that_do_not_fit_the_layers(model: LanguageModel, params: Params) -> None:
    graft = Blocks(3)
    with pytest.raises(
        UserError, match="every 3 layers does not fit a model of 2; let `every` be one of 1, 2"
    ):
        graft.init(model.architecture, jax.random.key(0), params)


def test_lora_starts_as_the_paper_says(model: LanguageModel, params: Params) -> None:
    architecture = model.architecture
    own = LoRA(64, 8.0, SITES).init(architecture, jax.random.key(0), params)
    for site in SITES:
        inputs = architecture.intermediate_size if site == "output" else architecture.hidden_size
        bound = 1 / np.sqrt(inputs)
        down = np.asarray(own[site]["down"]["kernel"])
        assert np.abs(down).max() <= bound
        np.testing.assert_allclose(down.std(), bound / np.sqrt(3), rtol=0.05)
        np.testing.assert_allclose(down.mean(), 0, atol=0.05 * bound)
        assert not np.any(own[site]["up"]["kernel"])


@pytest.mark.parametrize("form", ["houlsby", "pfeiffer", "parallel"])
def test_adapters_start_as_the_paper_says(model: LanguageModel, params: Params, form: Any) -> None:
    graft = Adapter(200, form)
    own = graft.init(model.architecture, jax.random.key(0), params)
    assert tuple(own) == graft.traits.sites
    bound = 1 / np.sqrt(model.architecture.hidden_size)
    for site in own.values():
        for part, values in site.items():
            kernel = np.asarray(values["kernel"])
            assert not np.any(values["bias"])
            if form != "parallel":
                assert np.abs(kernel).max() <= 2e-2
                # Of a normal cut at two standard deviations.
                np.testing.assert_allclose(kernel.std(), 0.88e-2, rtol=0.03)
            elif part == "down":
                assert np.abs(kernel).max() <= bound
                np.testing.assert_allclose(kernel.std(), bound / np.sqrt(3), rtol=0.05)
            else:
                assert not np.any(kernel)
