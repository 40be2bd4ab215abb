"""The train step does the same on every mesh, however its state is split."""

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend.core import Jaxpr, JaxprEqn, jaxprs_in_params

from das_jax.data.batch import Batch
from das_jax.data.objective import HiddenTokens
from das_jax.methods.contract import (
    Memory,
    Method,
    Metrics,
    Moment,
    Plan,
    Split,
    Transforms,
    UpdateTrace,
)
from das_jax.methods.das.das import DAS, DASMemory, DASSettings
from das_jax.methods.naive import Naive
from das_jax.methods.net import Net
from das_jax.methods.policies.sharpness import Sharpness
from das_jax.methods.policy import Policy
from das_jax.methods.settings.policies import SharpnessSettings
from das_jax.model.language_model import LanguageModel, Params
from das_jax.model.units import Units, full_units, parameter_paths, unit_shapes
from das_jax.objectives.collectives import global_mean, global_sum
from das_jax.training import sharding as sharding_module
from das_jax.training.direction import Direction
from das_jax.training.muon import Muon
from das_jax.training.optimizer import Optimizer, adamw
from das_jax.training.sharding import Gather, Sharding, State, make_sharding
from das_jax.training.step import (
    Recipe,
    TrainState,
    compile_train_step,
    first_state,
    init_state,
    make_train_step,
    places_of,
    recipe,
)
from das_jax.training.sums import compile_sums

Run = tuple[list[dict[str, float]], Params]
"""The metrics of every step, and the parameters after the last."""


@pytest.fixture(autouse=True)
def _split_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here all arrays are small."""
    monkeypatch.setattr(sharding_module, "SMALLEST_SPLIT", 2)


def learn(
    method: Method,
    memory: Memory,
    batch: Batch,
    sharding: Sharding,
    accumulate: int = 1,
    steps: int = 2,
    direction: Direction = adamw(0.9, 0.999, 1e-4, 0.01),  # noqa: B008
    policies: tuple[Policy, ...] = (),
) -> Run:
    """A few steps, dropout on, in which every example is another one each time."""
    method = dataclasses.replace(method, axis_name=sharding.batch)
    policies = tuple(dataclasses.replace(policy, method=method) for policy in policies)
    # Adam turns rounding noise around zero into steps unless epsilon is larger than the noise.
    optimizer = Optimizer(direction, lambda step: 1e-2)
    params, rng = method.model.init(jax.random.key(0)), sharding.replicate(jax.random.key(3))
    made = recipe(method, optimizer, accumulate=accumulate, policies=policies)
    carried: dict[str, Memory] = {policy.name: () for policy in policies}
    state = first_state(made, sharding, params, memory, rng, policies=carried)
    step = compile_train_step(made, sharding)
    rows = []
    for _ in range(steps):
        before = state
        state, metrics = step(before, sharding.shard_batch(batch, accumulate))
        assert_in_its_place(state, before, sharding)
        batch = batch._replace(index=batch.index + 8)
        rows.append({name: float(value) for name, value in metrics.items()})
    return rows, sharding.fetch(state.params)


def assert_in_its_place(state: TrainState, before: TrainState, sharding: Sharding) -> None:
    """A new state lives where the old one did, in its very memory."""
    places = places_of(state, sharding)
    for new, old, place in zip(*map(jax.tree.leaves, (state, before, places)), strict=True):
        assert new.sharding.is_equivalent_to(place, new.ndim)
        assert old.is_deleted()


def assert_same(actual: Run, expected: Run) -> None:
    """Losses to 1e-5, every parameter array to 1e-4 in norm: Adam makes of an element whose gradient is
    rounding noise as large a step as of any other.
    """
    for row, wanted in zip(actual[0], expected[0], strict=True):
        assert row == pytest.approx(wanted, rel=1e-5)
    for path, a, e in zip(
        parameter_paths(actual[1]), *map(jax.tree.leaves, (actual[1], expected[1])), strict=True
    ):
        if path.endswith("key/bias"):
            continue  # Its gradient is zero but for rounding noise, which Adam enlarges.
        assert np.linalg.norm(a - e) <= 1e-4 * np.linalg.norm(e), path


def das_memory(model: LanguageModel) -> DASMemory:
    importance = {
        kind: jax.random.uniform(jax.random.key(5), shape)
        for kind, shape in unit_shapes(model.architecture).items()
    }
    return DASMemory(Units(**importance))


@pytest.mark.slow
def test_losses_and_parameters_do_not_depend_on_the_mesh(
    model: LanguageModel, objective: HiddenTokens, batch: Batch
) -> None:
    method, memory = DAS(model, objective, DASSettings(), "data"), das_memory(model)
    expected = learn(method, memory, batch, make_sharding(1))
    assert expected[0][0]["contrastive"] != expected[0][1]["contrastive"], "dropout is on"
    meshes: list[tuple[int, State, Gather, Literal["all"] | int]] = [
        (8, "replicated", "layer", "all"),
        (4, "optimizer", "layer", 2),
        (8, "parameters", "layer", 4),
        (8, "parameters", "step", "all"),
    ]
    for devices, state, gather, parameters in meshes:
        sharding = make_sharding(devices, state, gather=gather, parameters=parameters)
        assert_same(learn(method, memory, batch, sharding), expected)


def test_no_device_holds_the_layers_whole(
    model: LanguageModel, objective: HiddenTokens, batch: Batch
) -> None:
    """With `mesh.state: parameters` they are put together one by one, forward and backward."""
    architecture = dataclasses.replace(model.architecture, intermediate_size=40)
    method = Method(LanguageModel(architecture), objective, None, "data")
    batch = batch._replace(tokens=batch.tokens[:, :12])
    sharding = make_sharding(8, "parameters")
    made = recipe(method, Optimizer(adamw(0.9, 0.999, 1e-4, 0.01), lambda step: 1e-2))
    params = method.model.init(jax.random.key(0))
    state = first_state(made, sharding, params, (), sharding.replicate(jax.random.key(3)))
    step = compile_train_step(made, sharding).lower(state, sharding.shard_batch(batch))
    program = step.compile().as_text()
    assert "f32[2,16,5]" in program, "a device's part of two layers"
    assert "f32[16,40]" in program, "one layer"
    assert "f32[2,16,40]" not in program, "two layers"


def test_sums_over_a_sample_do_not_depend_on_the_mesh(
    model: LanguageModel, params: Params, batch: Batch
) -> None:
    def sums(params: Params, batch: Batch, rng: jax.Array) -> jax.Array:
        rows = batch.weight * batch.index.astype(jnp.float32)
        return jnp.sum(rows) * optax.tree.norm(params, squared=True)

    def on(sharding: Sharding) -> jax.Array:
        place = sharding.put("params", params), sharding.shard_batch(batch)
        return compile_sums(sums, sharding)(*place, jax.random.key(0))

    np.testing.assert_allclose(on(make_sharding(8, "parameters")), on(make_sharding(1)), rtol=1e-5)


@pytest.mark.parametrize("parameters", ["all", 4])
def test_gradients_travel_in_the_type_that_is_asked_for(
    model: LanguageModel, objective: HiddenTokens, batch: Batch, parameters: Any
) -> None:
    """Each once: one sum over the devices of a group, of all of them, and one of its parts over groups,
    which is in float32.
    """
    optimizer = Optimizer(adamw(0.9, 0.999, 1e-4, 0.0), lambda step: 1e-2)
    sharding = make_sharding(8, "optimizer", jnp.bfloat16, parameters=parameters)
    made = recipe(Naive(model, objective, None, sharding.batch), optimizer)

    def step(params: Params) -> Any:
        state = init_state(made, params, (), jax.random.key(3))
        return make_train_step(made, sharding)(state, batch)

    shapes = jax.eval_shape(model.init, jax.random.key(0))
    does = [*equations(jax.make_jaxpr(step)(shapes).jaxpr)]
    scattered = [each.invars[0].aval for each in does if each.primitive.name == "reduce_scatter"]
    between = [
        x.aval
        for each in does
        if each.primitive.name == "psum_invariant" and each.params["axes"] == ("data",)
        for x in each.invars
    ]
    split = [x for x in jax.tree.leaves(shapes) if sharding.split_axis(x.shape) is not None]
    assert len(split) > 10
    assert sum(x.size for x in scattered) == sum(x.size for x in split)
    assert {x.dtype for x in scattered} == {jnp.dtype(jnp.bfloat16)}
    if parameters != "all":
        assert sum(x.size for x in between) == sum(x.size for x in split) // parameters
        assert {x.dtype for x in between} == {jnp.dtype(jnp.float32)}


def equations(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
    """All that a program does, what its inner programs do included."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner)


def vector(values: np.ndarray) -> Params:
    """One array, under the name of a parameter that is no matrix."""
    return {"lm_head": {"bias": values.astype(np.float32)}}


class Penalised(Method):
    """The indices of the batch times |w|^2, and a penalty that is the same on every device."""

    def loss(
        self, net: Net, memory: Any, batch: Batch, moment: Moment
    ) -> tuple[jax.Array, Metrics]:
        squares = optax.tree.norm(net.params, squared=True)
        data = global_sum(jnp.sum(batch.index.astype(jnp.float32)) * squares, self.axis_name)
        penalty = optax.tree.norm(optax.tree.sub(net.params, memory), squared=True)
        if self.settings == "counted once":
            penalty = global_mean(penalty, self.axis_name)
        return data + penalty, {"data": data}


def test_a_penalty_on_the_parameters_counts_once(
    model: LanguageModel, objective: HiddenTokens, batch: Batch
) -> None:
    def gradient_norm(devices: int, state: State, counted: str) -> float:
        method = Penalised(model, objective, counted, "data")
        optimizer, sharding = (
            Optimizer(optax.identity(), lambda step: 1.0),
            make_sharding(devices, state),
        )
        params, memory = vector(np.arange(16)), vector(np.ones(16))
        rng = sharding.replicate(jax.random.key(3))
        made = recipe(method, optimizer)
        start = first_state(made, sharding, params, memory, rng)
        step = compile_train_step(made, sharding)
        return float(step(start, sharding.shard_batch(batch))[1]["gradient_norm"])

    w = np.arange(16)
    expected = np.linalg.norm(2 * 28 * w + 2 * (w - 1))
    for devices in (1, 8):
        for state in get_args(State):
            norm = gradient_norm(devices, state, "counted once")
            assert norm == pytest.approx(expected, rel=1e-6)
    with pytest.raises(TypeError, match=r"Penalised.loss returns a 'loss' .* global_mean"):
        gradient_norm(8, "replicated", "by every device")


@pytest.mark.slow
def test_micro_batches_make_one_step(
    model: LanguageModel, objective: HiddenTokens, batch: Batch
) -> None:
    """The masked-LM loss is the mean over the whole batch, though some texts have fewer predictions."""
    assert len(set(np.asarray(objective.num_predictions(batch.tokens)))) > 1
    method = Naive(model, objective, None, "data")
    expected = learn(method, (), batch, make_sharding(1))
    groups = make_sharding(4, "parameters", parameters=2)
    assert_same(learn(method, (), batch, groups, accumulate=2), expected)


@pytest.mark.slow
def test_micro_batches_of_das_are_masked_once_and_do_not_depend_on_the_mesh(
    model: LanguageModel, objective: HiddenTokens, batch: Batch
) -> None:
    half = DASMemory(full_units(model.architecture, 0.5))
    method = DAS(model, objective, DASSettings(), "data")
    one, four = (
        learn(method, half, batch, make_sharding(devices), accumulate=2, steps=1)
        for devices in (1, 4)
    )
    assert_same(four, one)
    for kind in Units._fields:
        assert one[0][0][f"effective_mask/{kind}"] == pytest.approx(0.5, rel=1e-5)


@pytest.mark.slow
def test_muon_and_sharpness_do_not_depend_on_the_mesh(
    model: LanguageModel, objective: HiddenTokens, batch: Batch
) -> None:
    """Matrices are turned whole, however they are split, and the gradient's norm is that of all of it."""
    method = Naive(model, objective, None, "data")
    how: dict[str, Any] = {
        "direction": Muon(0.95, 0.2, 0.9, 0.999, 1e-4, 0.01),
        "policies": (Sharpness(method, SharpnessSettings(rho=0.5, every=2)),),
    }
    one = learn(method, (), batch, make_sharding(1), **how)
    groups = make_sharding(8, "parameters", parameters=2)
    assert_same(learn(method, (), batch, groups, **how), one)


class Noisy(Method):
    """|n w|^2, where every example draws an n of its own."""

    def loss(
        self, net: Net, memory: Any, batch: Batch, moment: Moment
    ) -> tuple[jax.Array, Metrics]:
        n_B = jax.vmap(jax.random.normal)(batch.example_keys(moment.rng))
        noise, w = jnp.sum(jnp.square(n_B)), net.params["lm_head"]["bias"]
        loss = global_sum(noise * jnp.sum(jnp.square(w)), self.axis_name)
        return loss, {"noise": global_sum(noise, self.axis_name)}


@pytest.mark.parametrize(("devices", "state"), [(1, "replicated"), (4, "parameters")])
def test_a_sharpness_aware_step_goes_by_the_gradient_uphill(
    model: LanguageModel, objective: HiddenTokens, batch: Batch, devices: int, state: State
) -> None:
    """At w + rho g / |g|, with the same noise there, of the mean over micro-batches; every other step."""
    method, w = Noisy(model, objective, None, "data"), np.arange(16.0)
    sharding, rho = make_sharding(devices, state), 2.0
    policy = Sharpness(method, SharpnessSettings(rho=rho, every=2))
    made = Recipe(
        *(method, Plan(model, trains=(("lm_head/.*", True), (".*", False)))),
        Optimizer(optax.identity(), lambda step: 1.0),
        policies=(policy,),
        accumulate=2,
    )
    params = vector(w) | {"embeddings": {"layer_norm": {"bias": jnp.full(4, 1e3)}}}
    rng = sharding.replicate(jax.random.key(3))
    before = first_state(made, sharding, params, (), rng, policies={"sharpness": ()})
    step = compile_train_step(made, sharding)
    for uphill in (True, False):
        w = sharding.fetch(before.params)["lm_head"]["bias"]
        before, metrics = step(before, sharding.shard_batch(batch, 2))
        noise = float(metrics["noise"])
        assert float(metrics["loss"]) == pytest.approx(noise * np.sum(w**2), rel=1e-5)
        gradient = 2 * noise * w
        if uphill:
            gradient = 2 * noise * (w + rho * w / np.linalg.norm(w))
        after = sharding.fetch(before.params)
        np.testing.assert_allclose(after["lm_head"]["bias"], w - gradient, rtol=1e-5)
        np.testing.assert_array_equal(after["embeddings"]["layer_norm"]["bias"], 1e3)


class Quadratic(Method):
    """|w|^2 in place of a language model."""

    def loss(
        self, net: Net, memory: Any, batch: Batch, moment: Moment
    ) -> tuple[jax.Array, Metrics]:
        loss = jnp.sum(jnp.square(net.params["w"]))
        return loss, {"square": loss}

    def observe(self, memory: Any, trace: UpdateTrace) -> Metrics:
        return {"moved": trace.masked["w"][0]}


def test_what_a_step_changes_and_tells(
    model: LanguageModel, objective: HiddenTokens, batch: Batch
) -> None:
    optimizer = Optimizer(adamw(0.9, 0.999, 1e-8, 0.0), lambda step: 0.25 * step)
    made = recipe(Quadratic(model, objective, None), optimizer)
    key = jax.random.key(3)
    state = init_state(made, {"w": jnp.array([3.0, -4.0])}, (), key)
    assert int(state.step) == 0
    new, metrics = jax.jit(make_train_step(made))(state._replace(step=jnp.int32(2)), batch)
    assert int(new.step) == 3
    assert new.rng == key
    # The first movement of Adam is the sign of the gradient.
    np.testing.assert_allclose(new.params["w"], [2.5, -3.5], rtol=1e-5)
    assert {name: float(value) for name, value in metrics.items()} == pytest.approx(
        {
            "loss": 25,
            "square": 25,
            "learning_rate": 0.5,
            "gradient_norm": 10,
            "parameter_norm": np.hypot(2.5, 3.5),
            "moved": 1,
        },
        rel=1e-5,
    )


def test_what_is_not_trained_stays_to_the_bit_and_has_no_optimizer_state(
    model: LanguageModel, params: Params, objective: HiddenTokens, batch: Batch
) -> None:
    """Though what lives in parts travels rounded."""
    sharding = make_sharding(8, "parameters", jnp.bfloat16)
    optimizer = Optimizer(adamw(0.9, 0.999, 1e-8, 0.1), lambda step: 1e-2)
    plan = Plan(model, trains=((".*/bias", True), (".*", False)))
    made = Recipe(Penalised(model, objective, "counted once", "data"), plan, optimizer)
    rng = sharding.replicate(jax.random.key(3))
    state = first_state(made, sharding, params, optax.tree.ones_like(params), rng)
    biases = [path for path in parameter_paths(params) if path.endswith("/bias")]
    assert 5 < len(biases) < len(parameter_paths(params))
    for moment in (state.opt_state.direction[0].mu, state.opt_state.direction[0].nu):
        assert parameter_paths(moment) == biases
    step = compile_train_step(made, sharding)
    for _ in range(2):
        state, _ = step(state, sharding.shard_batch(batch))
    for path, new, old in zip(
        parameter_paths(params),
        *map(jax.tree.leaves, (sharding.fetch(state.params), jax.device_get(params))),
        strict=True,
    ):
        assert np.array_equal(new, old) == (path not in biases), path


class Taught(Method):
    """w times what a teacher says; its gradient is scaled by an array that lives in parts."""

    def loss(
        self, net: Net, memory: Any, batch: Batch, moment: Moment
    ) -> tuple[jax.Array, Metrics]:
        assert memory["scale"].tree["lm_head"]["bias"].shape == (2,), "this device's part"
        w, teacher = (x["lm_head"]["bias"] for x in (net.params, memory["teacher"].tree))
        loss = global_sum(jnp.sum(batch.weight) * jnp.sum(w * teacher), "data")
        return loss / 8, {"last of the teacher": global_mean(teacher[-1], "data")}

    def transforms(self, memory: Any, moment: Moment) -> Transforms:
        scale = memory["scale"].tree
        return Transforms(
            gradient=optax.stateless(lambda updates, _: jax.tree.map(jnp.multiply, updates, scale))
        )


def test_split_memory_lives_in_parts_and_a_teacher_arrives_whole(
    model: LanguageModel, objective: HiddenTokens, batch: Batch
) -> None:
    sharding = make_sharding(8, "optimizer")
    made = recipe(
        Taught(model, objective, None, "data"), Optimizer(optax.identity(), lambda step: 1.0)
    )
    params, teacher, scale = np.arange(16), np.arange(16)[::-1] + 3, np.arange(16) + 1
    memory = {"teacher": Split(vector(teacher), whole=True), "scale": Split(vector(scale))}
    rng = sharding.replicate(jax.random.key(3))
    state = first_state(made, sharding, vector(params), memory, rng)
    state, metrics = compile_train_step(made, sharding)(state, sharding.shard_batch(batch))
    assert float(metrics["last of the teacher"]) == 3
    np.testing.assert_allclose(state.params["lm_head"]["bias"], params - teacher * scale, rtol=1e-6)
    for name, before in (("teacher", teacher), ("scale", scale)):
        after = state.memory[name].tree["lm_head"]["bias"]
        assert {shard.data.shape for shard in after.addressable_shards} == {(2,)}
        np.testing.assert_array_equal(after, before)
    assert state.memory["teacher"].whole
    assert not state.memory["scale"].whole


def test_sums_may_stay_in_parts(params: Params, batch: Batch) -> None:
    def sums(params: Params, batch: Batch, rng: jax.Array) -> Params:
        rows = jnp.sum(batch.weight * batch.index.astype(jnp.float32))
        return jax.tree.map(lambda x: rows * x, params)

    sharding = make_sharding(8, "optimizer", jnp.bfloat16, parameters=4)
    place = sharding.put("params", params), sharding.shard_batch(batch), jax.random.key(0)
    whole, parts = (compile_sums(sums, sharding, split)(*place) for split in (False, True))
    for all_of_it, part, place in zip(
        *map(jax.tree.leaves, (whole, parts, sharding.specs("opt_state", params))), strict=True
    ):
        np.testing.assert_allclose(part, all_of_it, rtol=1e-6)
        shard = part.addressable_shards[0].data
        assert shard.size * (4 if place else 1) == all_of_it.size
