"""The train step does the same on every mesh, however its state is split."""

from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from das_jax.data.batch import Batch
from das_jax.data.masking import Masking
from das_jax.methods import settings as method_settings
from das_jax.methods.contract import Memory, Method, Metrics, UpdateTrace
from das_jax.methods.das.das import DAS, DASMemory, DASSettings
from das_jax.methods.naive import Naive
from das_jax.model.masked_lm import MaskedLM, Params
from das_jax.model.units import Units, full_units, parameter_paths, unit_shapes
from das_jax.objectives.collectives import global_mean, global_sum
from das_jax.training import sharding as sharding_module
from das_jax.training.optimizer import Optimizer, adamw
from das_jax.training.sharding import Sharding, State, make_sharding
from das_jax.training.step import (
    TrainState,
    compile_sums,
    compile_train_step,
    first_state,
    init_state,
    make_train_step,
    places_of,
)

Learned = tuple[list[dict[str, float]], Params]
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
) -> Learned:
    """A few steps, dropout on, in which every example is another one each time."""
    # Adam turns rounding noise around zero into steps unless epsilon is larger than the noise.
    optimizer = Optimizer(adamw(0.9, 0.999, 1e-4, 0.01), lambda step: 1e-2)
    params, rng = method.model.init(jax.random.key(0)), sharding.replicate(jax.random.key(3))
    state = first_state(method, optimizer, sharding, params, memory, rng)
    step = compile_train_step(method, optimizer, sharding, accumulate)
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


def assert_same(actual: Learned, expected: Learned) -> None:
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


def das_memory(model: MaskedLM) -> DASMemory:
    importance = {
        kind: jax.random.uniform(jax.random.key(5), shape)
        for kind, shape in unit_shapes(model.architecture).items()
    }
    return DASMemory(Units(**importance))


@pytest.mark.slow
def test_losses_and_parameters_do_not_depend_on_the_mesh(
    model: MaskedLM, masking: Masking, batch: Batch
) -> None:
    method, memory = DAS(model, masking, DASSettings(), "data"), das_memory(model)
    expected = learn(method, memory, batch, make_sharding(1))
    assert expected[0][0]["contrastive"] != expected[0][1]["contrastive"], "dropout is on"
    meshes: list[tuple[int, State]] = [
        (8, "replicated"),
        (4, "optimizer"),
        (8, "parameters"),
    ]
    for devices, state in meshes:
        sharding = make_sharding(devices, state)
        assert_same(learn(method, memory, batch, sharding), expected)


def test_sums_over_a_sample_do_not_depend_on_the_mesh(
    model: MaskedLM, params: Params, batch: Batch
) -> None:
    def sums(params: Params, batch: Batch, rng: jax.Array) -> jax.Array:
        rows = batch.weight * batch.index.astype(jnp.float32)
        return jnp.sum(rows) * optax.tree.norm(params, squared=True)

    def on(sharding: Sharding) -> jax.Array:
        place = sharding.put("params", params), sharding.shard_batch(batch)
        return compile_sums(sums, sharding)(*place, jax.random.key(0))

    np.testing.assert_allclose(on(make_sharding(8, "parameters")), on(make_sharding(1)), rtol=1e-5)


def test_gradients_travel_in_the_type_that_is_asked_for(
    model: MaskedLM, masking: Masking, batch: Batch
) -> None:
    """Each once: one sum over the devices, of all of them."""
    method = Naive(model, masking, None, "data")
    optimizer = Optimizer(adamw(0.9, 0.999, 1e-4, 0.0), lambda step: 1e-2)
    sharding = make_sharding(8, "optimizer", jnp.bfloat16)

    def step(params: Params) -> Any:
        state = init_state(method, optimizer, params, (), jax.random.key(3))
        return make_train_step(method, optimizer, sharding)(state, batch)

    shapes = jax.eval_shape(model.init, jax.random.key(0))
    text = str(jax.make_jaxpr(step)(shapes))
    scattered = [line for line in text.splitlines() if "= reduce_scatter[" in line]
    split = [x for x in jax.tree.leaves(shapes) if sharding.split_axis(x.shape) is not None]
    assert len(scattered) == len(split) > 10
    assert all("bf16[" in line.split("=")[0] for line in scattered)


class Penalised(Method):
    """The indices of the batch times |w|^2, and a penalty that is the same on every device."""

    def loss(
        self, params: Params, memory: Any, batch: Batch, rng: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        squares = optax.tree.norm(params, squared=True)
        data = global_sum(jnp.sum(batch.index.astype(jnp.float32)) * squares, self.axis_name)
        penalty = optax.tree.norm(optax.tree.sub(params, memory), squared=True)
        if self.settings == "counted once":
            penalty = global_mean(penalty, self.axis_name)
        return data + penalty, {"data": data}


def test_a_penalty_on_the_parameters_counts_once(
    model: MaskedLM, masking: Masking, batch: Batch
) -> None:
    def gradient_norm(devices: int, state: State, counted: str) -> float:
        method = Penalised(model, masking, counted, "data")
        optimizer, sharding = (
            Optimizer(optax.identity(), lambda step: 1.0),
            make_sharding(devices, state),
        )
        params, memory = {"w": jnp.arange(16.0)}, {"w": jnp.ones(16)}
        rng = sharding.replicate(jax.random.key(3))
        start = first_state(method, optimizer, sharding, params, memory, rng)
        step = compile_train_step(method, optimizer, sharding)
        return float(step(start, sharding.shard_batch(batch))[1]["gradient_norm"])

    w = np.arange(16)
    expected = np.linalg.norm(2 * 28 * w + 2 * (w - 1))
    for devices in (1, 8):
        for state in get_args(State):
            norm = gradient_norm(devices, state, "counted once")
            assert norm == pytest.approx(expected, rel=1e-6)
    with pytest.raises(TypeError, match=r"Penalised.loss returns a 'loss' .* global_mean"):
        gradient_norm(8, "replicated", "by every device")


def test_the_method_of_the_readme_is_taken_on_any_mesh(
    model: MaskedLM, masking: Masking, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    blocks = [block.split("```")[0] for block in readme.split("```python\n")]

    def execute(text: str, names: dict[str, Any]) -> dict[str, Any]:
        (code,) = (block for block in blocks if text in block)
        exec(compile(code, "README.md", "exec"), names)
        return names

    of_settings = execute("class L2Settings", dict(vars(method_settings)))
    monkeypatch.setattr(method_settings, "L2Settings", of_settings["L2Settings"], raising=False)
    names = execute("class L2(Method)", of_settings)
    method = names["L2"](model, masking, names["L2Settings"](), "data")
    optimizer = Optimizer(adamw(0.9, 0.999, 1e-8, 0.0), lambda step: 1e-3)

    def step(params: Params) -> Any:
        memory = method.before_domain(params, method.init(params), None)
        state = init_state(method, optimizer, params, memory, jax.random.key(3))
        return make_train_step(method, optimizer, make_sharding(8, "parameters"))(state, batch)

    _, metrics = jax.eval_shape(step, jax.eval_shape(model.init, jax.random.key(0)))
    assert {"loss", "masked_lm", "distance"} <= metrics.keys()


@pytest.mark.slow
def test_micro_batches_make_one_step(model: MaskedLM, masking: Masking, batch: Batch) -> None:
    """The masked-LM loss is the mean over the whole batch, though some texts have fewer predictions."""
    assert len(set(np.asarray(masking.num_predictions(batch.tokens)))) > 1
    method = Naive(model, masking, None, "data")
    expected = learn(method, (), batch, make_sharding(1))
    assert_same(learn(method, (), batch, make_sharding(2, "parameters"), accumulate=4), expected)


@pytest.mark.slow
def test_micro_batches_of_das_are_masked_once_and_do_not_depend_on_the_mesh(
    model: MaskedLM, masking: Masking, batch: Batch
) -> None:
    half = DASMemory(full_units(model.architecture, 0.5))
    method = DAS(model, masking, DASSettings(), "data")
    one, four = (
        learn(method, half, batch, make_sharding(devices), accumulate=2, steps=1)
        for devices in (1, 4)
    )
    assert_same(four, one)
    for kind in Units._fields:
        assert one[0][0][f"effective_mask/{kind}"] == pytest.approx(0.5, rel=1e-5)


class Quadratic(Method):
    """|w|^2 in place of a language model."""

    def loss(
        self, params: Params, memory: Any, batch: Batch, rng: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        loss = jnp.sum(jnp.square(params["w"]))
        return loss, {"square": loss}

    def observe(self, memory: Any, trace: UpdateTrace) -> Metrics:
        return {"moved": trace.masked["w"][0]}


def test_what_a_step_changes_and_tells(model: MaskedLM, masking: Masking, batch: Batch) -> None:
    method = Quadratic(model, masking, None)
    optimizer = Optimizer(adamw(0.9, 0.999, 1e-8, 0.0), lambda step: 0.25 * step)
    key = jax.random.key(3)
    state = init_state(method, optimizer, {"w": jnp.array([3.0, -4.0])}, (), key)
    assert int(state.step) == 0
    new, metrics = jax.jit(make_train_step(method, optimizer))(
        state._replace(step=jnp.int32(2)), batch
    )
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
