from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pydantic
import pytest

from das_jax.data.batch import Batch
from das_jax.data.objective import Drawn, HiddenTokens
from das_jax.errors import UserError
from das_jax.methods.contract import Learned, Moment, Place, Transforms
from das_jax.methods.das import importance, importance_map
from das_jax.methods.das.das import (
    DAS,
    ContrastiveSettings,
    DASMemory,
    DASSettings,
    Keys,
)
from das_jax.methods.das.dga import DGA
from das_jax.methods.das.importance import GateGradientSums, ImportanceSettings
from das_jax.methods.net import Net
from das_jax.methods.settings.das import DGASettings
from das_jax.methods.soft_mask import SoftMaskSettings, soft_mask
from das_jax.methods.unmasked import unmasked_update
from das_jax.model.heads import mean_pool
from das_jax.model.language_model import LanguageModel, Params
from das_jax.model.units import Units, full_units, unit_shapes
from das_jax.objectives.contrastive import contrastive_loss
from das_jax.training.lion import Lion
from das_jax.training.muon import Muon
from das_jax.training.optimizer import Optimizer, adamw
from das_jax.training.sharding import make_sharding


def random_units(model: LanguageModel, seed: int) -> Units:
    """Importances in [0, 0.95], and one unit of each kind at exactly 1."""
    keys = jax.random.split(jax.random.key(seed), 3)
    shapes = unit_shapes(model.architecture).values()
    values = (jax.random.uniform(k, s, maxval=0.95) for k, s in zip(keys, shapes, strict=True))
    return Units(*(value.at[0, 0].set(1.0) for value in values))


ADAM = adamw(0.9, 0.999, 1e-8, 0.01)


@pytest.mark.parametrize(
    ("direction", "apply_to"),
    [
        (ADAM, "gradient"),
        (ADAM, "first_moment"),
        (Lion(0.9, 0.99, 0.01), "gradient"),
        (Muon(0.95, 0.2, 0.9, 0.999, 1e-8, 0.01), "gradient"),
    ],
    ids=lambda x: x if isinstance(x, str) else type(x).__name__,
)
def test_the_unmasked_update_is_that_of_a_second_optimizer(
    model: LanguageModel, params: Params, direction: Any, apply_to: str
) -> None:
    """Dividing masked moments by the mask gives back what a shadow optimizer would hold."""
    protected, optimizer = random_units(model, 1), Optimizer(direction, lambda step: 0.0)
    if isinstance(direction, Muon):
        # A matrix that lacks columns would be turned otherwise than the whole one.
        protected = jax.tree.map(lambda x: jnp.minimum(x, 0.95), protected)
    transforms = Transforms(**{apply_to: soft_mask(protected)})
    masked_state = optimizer.init(params, transforms)
    shadow_state = optimizer.init(params, Transforms())

    @jax.jit
    def step(key: jax.Array, masked_state: Any, shadow_state: Any) -> Any:
        gradients = jax.tree.map(lambda x: 1e-2 * jax.random.normal(key, x.shape), params)
        _, masked_state, trace = optimizer.update(
            gradients, masked_state, params, transforms, jnp.int32(0)
        )
        _, shadow_state, shadow = optimizer.update(
            gradients, shadow_state, params, Transforms(), jnp.int32(0)
        )
        unmasked = unmasked_update(trace, protected, of_second=apply_to == "gradient")
        return (trace.masked, unmasked, shadow.masked), masked_state, shadow_state

    for key in jax.random.split(jax.random.key(0), 4):
        updates, masked_state, shadow_state = step(key, masked_state, shadow_state)
    masked, actual, expected = (
        np.asarray(tree["layers"]["feed_forward"]["intermediate"]["kernel"]) for tree in updates
    )
    opening = 1 - np.asarray(protected.intermediate)
    whole = jnp.broadcast_to(opening[:, None], masked.shape) > 0
    closed = ~np.asarray(whole)
    # Where nothing of the moments is left, the masked update stands in: there only weight decay moves.
    np.testing.assert_array_equal(actual[closed], masked[closed])
    decay = 0.01 * np.asarray(params["layers"]["feed_forward"]["intermediate"]["kernel"])
    np.testing.assert_allclose(actual[~closed], expected[~closed], rtol=2e-3, atol=1e-4)
    np.testing.assert_allclose(masked[closed], decay[closed], atol=1e-7)
    if apply_to == "first_moment":
        wanted = (expected - decay) * opening[:, None]
        np.testing.assert_allclose(masked - decay, wanted, rtol=2e-3, atol=1e-4)


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
def das(model: LanguageModel, objective: HiddenTokens) -> DAS:
    return DAS(model, objective, DASSettings())


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
    own = GateGradientSums(das, importance.LM)
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
    drawn = das.objective.draw(tokens, batch.example_keys(jax.random.key(4)))

    def parts(rows: slice, **contrastive: Any) -> dict[str, jax.Array]:
        method = replace(das, settings=DASSettings(contrastive=ContrastiveSettings(**contrastive)))
        some = jax.tree.map(lambda x: x[rows], (drawn, keys))

        @jax.jit
        def losses(params: Params, drawn: Drawn, keys: Keys) -> Any:
            net = Net(method.model, params)
            return method.loss_of(net, memory, drawn, MOMENT, keys)

        return losses(params, *some)[1]

    every_second, everything = slice(None, None, 2), slice(None)
    actual = parts(everything, anchor="masked", subsample=2)
    expected = parts(every_second, anchor="masked")["contrastive"]
    np.testing.assert_allclose(actual["contrastive"], expected, rtol=1e-5)
    np.testing.assert_allclose(actual["masked_lm"], parts(everything)["masked_lm"], rtol=1e-5)
    with pytest.raises(UserError, match="subsample is 3, which does not divide the 8 examples"):
        parts(everything, subsample=3)


def test_the_floor_softens_the_mask_and_not_the_gates(das: DAS, model: LanguageModel) -> None:
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


class Unmeasured(StillDomain):
    """A domain of which nothing may be measured."""

    def accumulate(self, function: Any, params: Params, rng: jax.Array, **sample: Any) -> Any:
        raise AssertionError(f"{function.name} was measured")


def test_importance_drawn_at_random_is_measured_of_nothing(
    model: LanguageModel, objective: HiddenTokens, params: Params, batch: Batch, tmp_path: Path
) -> None:
    settings = DASSettings(importance=ImportanceSettings(source="random"))
    method = DAS(model, objective, settings)
    start = Learned(params, method.init(params))

    def learned(seed: int, sharding: Any = None) -> list[Units]:
        domain = Unmeasured(batch, 0, tmp_path)
        domain.rng = jax.random.key(seed)
        if sharding is not None:
            domain.rng = sharding.replicate(domain.rng)
        began = method.begin(start, domain)  # type: ignore[arg-type]
        return [
            each.memory.importance
            for each in (began, method.end(start, domain), method.end(began, domain))  # type: ignore[arg-type]
        ]

    general, own, both = learned(0)
    for kind in Units._fields:
        values = np.asarray([getattr(each, kind) for each in (general, own, both)])
        assert 0 <= values.min() < 0.2
        # Of a uniform raw map, |z| is at most about the square root of 3.
        assert 0.8 < values.max() < 0.97
        assert np.abs(values[0] - values[1]).max() > 0.3
        np.testing.assert_array_equal(values[2], np.maximum(values[0], values[1]))
    other = learned(1)
    assert all((a != b).mean() > 0.9 for a, b in zip(own, other[1], strict=True))
    for again in (learned(0), learned(0, make_sharding(4))):
        jax.tree.map(np.testing.assert_array_equal, again, [general, own, both])
    assert not list(tmp_path.iterdir())
    assert DAS.lost(settings, tmp_path, 0, tmp_path) == []


def test_without_initialisation_the_first_domain_is_not_masked(
    model: LanguageModel, objective: HiddenTokens, params: Params, batch: Batch, tmp_path: Path
) -> None:
    method = DAS(model, objective, DASSettings(importance=ImportanceSettings(general=False)))
    start = Learned(params, method.init(params))
    began = method.begin(start, Unmeasured(batch, 0, tmp_path))  # type: ignore[arg-type]
    assert began is start
    assert DAS.measured(method.settings, 0) == ["importance.safetensors"]
    update = method.transforms(began.memory, MOMENT).update
    moved = jax.tree.map(lambda x: 1e-3 * x, params)
    masked, _ = update.update(moved, update.init(moved))
    jax.tree.map(np.testing.assert_array_equal, masked, moved)


def test_without_a_mask_nothing_is_done_to_updates(das: DAS, params: Params) -> None:
    settings = DASSettings(soft_mask=SoftMaskSettings(apply_to="none"))
    method, memory = replace(das, settings=settings), DASMemory(random_units(das.model, 1))
    assert method.transforms(memory, MOMENT) == Transforms()
    trace: Any = None
    assert method.observe(memory, trace) == {}
    assert method.cost() == das.cost()


def test_without_contrast_one_pass_is_made(das: DAS, params: Params, batch: Batch) -> None:
    def program(weight: float) -> str:
        settings = DASSettings(contrastive=ContrastiveSettings(weight=weight))
        method = replace(das, settings=settings)
        assert method.cost().full == (4 if weight else 1)

        def loss(params: Params, importance: Units) -> jax.Array:
            net = Net(method.model, params)
            return method.loss(net, DASMemory(importance), batch, MOMENT)[0]

        return str(jax.make_jaxpr(loss)(params, random_units(das.model, 2)))

    assert [program(weight).count("= scan[") for weight in (0, 1)] == [1, 4]


def test_which_units_make_which_view(
    das: DAS, params: Params, batch: Batch, objective: HiddenTokens
) -> None:
    """The contrastive loss of views made by hand, without dropout."""
    importance_, ones = random_units(das.model, 3), full_units(das.model.architecture, 1.0)
    zeros = full_units(das.model.architecture, 0.0)
    alone = Units(importance_.heads, zeros.intermediate, zeros.output)
    free = jax.tree.map(lambda x: 1 - x, importance_)
    complement = DASSettings(contrastive=ContrastiveSettings(views="complement"))
    heads = DASSettings(importance=ImportanceSettings(kinds=("heads",)))
    gated_heads = Units(importance_.heads, ones.intermediate, ones.output)
    cases = {
        "full": (DASSettings(), importance_, ones, importance_),
        "complement": (complement, importance_, free, importance_),
        "complement of nothing": (complement, zeros, ones, zeros),
        "heads": (heads, alone, ones, gated_heads),
    }
    drawn = objective.draw(batch.tokens, batch.example_keys(jax.random.key(4)))

    @jax.jit
    def contrasts(params: Params) -> dict[str, tuple[jax.Array, jax.Array]]:
        net, found = Net(das.model, params), {}
        for name, (settings, units, *gates) in cases.items():
            method = replace(das, settings=settings)
            parts = method.loss_of(net, DASMemory(units), drawn, MOMENT, None)[1]
            view, owned = (
                mean_pool(net.encode(drawn.clean, None, each), drawn.clean.mask) for each in gates
            )
            found[name] = parts["contrastive"], contrastive_loss(view, view, owned, 0.05)
        return found

    found = contrasts(params)
    for name, (actual, expected) in found.items():
        np.testing.assert_allclose(actual, expected, rtol=1e-5, err_msg=name)
    values = [float(actual) for actual, _ in found.values()]
    assert np.abs(np.subtract.outer(values, values) + np.eye(4)).min() > 1e-3


def test_dga_knows_of_every_domain_what_the_base_model_does(
    model: LanguageModel, objective: HiddenTokens, params: Params, batch: Batch, tmp_path: Path
) -> None:
    settings = DGASettings()
    method = DGA(model, objective, settings)  # type: ignore[arg-type]
    assert method.plan(Place(1, ("second",), (8,), 8)).start == "base"
    earlier = DASMemory(full_units(model.architecture, 1.0))
    second = StillDomain(batch, 1, tmp_path)
    began = method.begin(Learned(params, earlier), second)  # type: ignore[arg-type]
    raw = importance.raw_importance(
        jax.jit(GateGradientSums(method, importance.proxy("hidden")))(
            params, batch, jax.random.fold_in(second.rng, 1)
        )
    )
    found = began.memory.importance
    np.testing.assert_allclose(found.heads, importance.normalise(raw.mean).heads, atol=1e-5)
    assert not found.intermediate.any()
    assert not found.output.any()
    nothing = Unmeasured(batch, 1, tmp_path)
    assert method.end(began, nothing) is began  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["importance.safetensors"]
    assert DGA.measured(settings, 1) == ["importance.safetensors"]


@pytest.mark.parametrize(
    ("group", "values", "said"),
    [
        (ContrastiveSettings, {"anchor": "masked", "views": "complement"}, "needs anchor: clean"),
        (SoftMaskSettings, {"apply_to": "none", "floor": 0.5}, "apply_to is none"),
        (ImportanceSettings, {"general": False, "initial": "map"}, "general: false"),
        (ImportanceSettings, {"kinds": ()}, "at least 1"),
    ],
)
def test_settings_that_would_be_ignored_are_refused(
    group: Any, values: dict[str, Any], said: str
) -> None:
    with pytest.raises(pydantic.ValidationError, match=said):
        group(**values)
