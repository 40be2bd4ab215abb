from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from das_jax.data.batch import Batch
from das_jax.data.masking import Masked, Masking
from das_jax.errors import UserError
from das_jax.methods.contract import Learned, Moment, UpdateTrace
from das_jax.methods.das import importance, importance_map
from das_jax.methods.das.das import (
    DAS,
    ContrastiveSettings,
    DASMemory,
    DASSettings,
    Keys,
    unmasked_update,
)
from das_jax.methods.das.importance import GateGradientSums, ImportanceSettings
from das_jax.methods.net import Net
from das_jax.methods.soft_mask import SoftMaskSettings, soft_mask
from das_jax.model.masked_lm import MaskedLM, Params
from das_jax.model.units import Units, unit_shapes
from das_jax.training.optimizer import adamw


def random_units(model: MaskedLM, seed: int) -> Units:
    """Importances in [0, 0.95], and one unit of each kind at exactly 1."""
    keys = jax.random.split(jax.random.key(seed), 3)
    shapes = unit_shapes(model.architecture).values()
    values = (jax.random.uniform(k, s, maxval=0.95) for k, s in zip(keys, shapes, strict=True))
    return Units(*(value.at[0, 0].set(1.0) for value in values))


def test_the_unmasked_update_is_that_of_a_second_adam(model: MaskedLM, params: Params) -> None:
    """Dividing Adam's masked moments by the mask gives back what a shadow optimizer would hold."""
    protected = random_units(model, 1)
    mask, optimizer = soft_mask(protected), adamw(0.9, 0.999, 1e-8, 0.01)
    masked_state = shadow_state = optimizer.init(params)

    @jax.jit
    def step(key: jax.Array, masked_state: Any, shadow_state: Any) -> Any:
        gradients = jax.tree.map(lambda x: 1e-2 * jax.random.normal(key, x.shape), params)
        masked_gradients, _ = mask.update(gradients, mask.init(params))
        masked, next_state = optimizer.update(masked_gradients, masked_state, params)
        trace = UpdateTrace(params, gradients, masked, masked, optimizer, masked_state)
        expected, shadow_state = optimizer.update(gradients, shadow_state, params)
        return masked, unmasked_update(trace, protected), expected, next_state, shadow_state

    for key in jax.random.split(jax.random.key(0), 4):
        masked, actual, expected, masked_state, shadow_state = step(key, masked_state, shadow_state)
    kernels = [
        tree["layers"]["feed_forward"]["intermediate"]["kernel"]
        for tree in (masked, actual, expected)
    ]
    open_units = np.asarray(protected.intermediate) < 1
    for layer in range(2):
        own = open_units[layer]
        got, wanted = (np.asarray(kernel[layer])[:, own] for kernel in kernels[1:])
        np.testing.assert_allclose(got, wanted, rtol=2e-3, atol=1e-4)
    # Where nothing of Adam's moments is left, the masked update stands in.
    np.testing.assert_array_equal(kernels[1][0][:, 0], kernels[0][0][:, 0])


@dataclass
class StillDomain:
    """A domain of one batch."""

    batch: Batch
    index: int
    directory: Path
    name: str = "still"

    def __post_init__(self) -> None:
        self.rng = jax.random.key(0)
        self.said: list[str] = []

    def log(self, sentence: str) -> None:
        self.said.append(sentence)

    def read(self, load: Any, like: Any) -> Any:
        return load()

    def accumulate(self, function: Any, params: Params, rng: jax.Array, **sample: Any) -> Any:
        return jax.jit(function)(params, self.batch, rng)


MOMENT = Moment(jnp.int32(0), jnp.int32(0), 1, jax.random.key(0))


@pytest.fixture
def das(model: MaskedLM, masking: Masking) -> DAS:
    return DAS(model, masking, DASSettings())


def test_importance_starts_with_general_knowledge_and_only_grows(
    das: DAS, params: Params, batch: Batch, tmp_path: Path
) -> None:
    first = StillDomain(batch, 0, tmp_path / "01")
    start = Learned(params, das.init(params), {"tokens": np.zeros((2, 16), np.int32)})
    began = das.begin(start, first)
    ended = das.end(began, first)
    for each in (began, ended):
        assert each.params is params
        assert each.kept is start.kept
    before, after = began.memory, ended.memory
    own = GateGradientSums(das, importance.MASKED_LM)
    raw = importance.raw_importance(jax.jit(own)(params, batch, jax.random.fold_in(first.rng, 0)))
    expected = importance.accumulate(importance.normalise(raw.mean), before.importance)
    for kind in Units._fields:
        assert getattr(before.importance, kind).max() > 0.5
        np.testing.assert_allclose(
            getattr(after.importance, kind), getattr(expected, kind), atol=1e-5
        )
    # General knowledge is measured once.
    second = StillDomain(batch, 1, tmp_path / "02")
    assert das.begin(ended, second) is ended
    saved = importance_map.load(tmp_path / "01" / "importance.safetensors", das.model.architecture)
    np.testing.assert_array_equal(saved.importance.heads, after.importance.heads)
    assert (tmp_path / "01" / "importance-general.safetensors").exists()
    assert any("split-half correlation" in sentence for sentence in first.said)


def test_it_can_start_from_a_map_in_a_file(
    das: DAS, params: Params, batch: Batch, tmp_path: Path
) -> None:
    domain = StillDomain(batch, 0, tmp_path)
    memory = das.end(Learned(params, das.init(params)), domain).memory
    path = str(tmp_path / "importance.safetensors")
    settings = DASSettings(importance=ImportanceSettings(initial=path))
    start = Learned(params, das.init(params))
    started = replace(das, settings=settings).begin(start, domain).memory
    np.testing.assert_array_equal(started.importance.output, memory.importance.output)


def test_the_gated_view_learns_too_and_the_masked_anchor_saves_a_pass(
    das: DAS, params: Params, batch: Batch
) -> None:
    memory = DASMemory(random_units(das.model, 2))

    def passes(settings: DASSettings) -> tuple[int, jax.Array]:
        method = replace(das, settings=settings)

        def losses(params: Params) -> Any:
            return method.loss(Net(method.model, params), memory, batch, MOMENT)

        loss = jax.make_jaxpr(lambda p: losses(p)[0])
        value, parts = jax.jit(losses)(params)
        np.testing.assert_allclose(value, parts["masked_lm"] + parts["contrastive"], rtol=1e-6)
        return str(loss(params)).count("= scan["), parts["masked_lm"]

    clean, masked_lm = passes(DASSettings())
    shared, same_masked_lm = passes(DASSettings(contrastive=ContrastiveSettings(anchor="masked")))
    assert clean - shared == 1
    np.testing.assert_allclose(masked_lm, same_masked_lm, rtol=1e-6)


def test_a_subsample_is_contrasted_as_if_it_were_the_batch(
    das: DAS, params: Params, batch: Batch
) -> None:
    memory = DASMemory(random_units(das.model, 2))
    tokens, keys = batch.tokens, Keys(*(batch.example_keys(jax.random.key(k)) for k in range(4)))
    masked = das.masking.corrupt(tokens, batch.example_keys(jax.random.key(4)))

    def parts(rows: slice, **contrastive: Any) -> dict[str, jax.Array]:
        method = replace(das, settings=DASSettings(contrastive=ContrastiveSettings(**contrastive)))
        some = jax.tree.map(lambda x: x[rows], (tokens, masked, keys))

        @jax.jit
        def losses(params: Params, tokens_BxT: jax.Array, masked: Masked, keys: Keys) -> Any:
            net = Net(method.model, params)
            return method.objective(net, memory, tokens_BxT, masked, MOMENT, keys)

        return losses(params, *some)[1]

    every_second, everything = slice(None, None, 2), slice(None)
    actual = parts(everything, anchor="masked", subsample=2)
    expected = parts(every_second, anchor="masked")["contrastive"]
    np.testing.assert_allclose(actual["contrastive"], expected, rtol=1e-5)
    np.testing.assert_allclose(actual["masked_lm"], parts(everything)["masked_lm"], rtol=1e-5)
    with pytest.raises(UserError, match="subsample is 3, which does not divide the 8 examples"):
        parts(everything, subsample=3)


def test_the_floor_softens_the_mask_and_not_the_gates(das: DAS, model: MaskedLM) -> None:
    settings = DASSettings(soft_mask=SoftMaskSettings(floor=0.9))
    memory = DASMemory(random_units(model, 3))
    method = replace(das, settings=settings)
    ones = jax.tree.map(
        jnp.ones_like, {"layers": {"feed_forward": {"output": {"bias": jnp.ones((2, 16))}}}}
    )
    update = method.transforms(memory, MOMENT).update
    masked, _ = update.update(ones, update.init(ones))
    bias = masked["layers"]["feed_forward"]["output"]["bias"]
    np.testing.assert_allclose(bias.mean(axis=-1), 0.9, rtol=1e-5)
    assert (1 - memory.importance.output).mean() < 0.7
