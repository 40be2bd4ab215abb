"""The train step does the same on every mesh."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from das_jax.continual.das import DAS, DASMemory, DASSettings
from das_jax.continual.method import Method, Metrics, UpdateTrace
from das_jax.data.batch import Batch
from das_jax.data.masking import Masking
from das_jax.model.masked_lm import MaskedLM, Params
from das_jax.model.units import Units, parameter_paths, unit_shapes
from das_jax.training.optimizer import Optimizer, adamw
from das_jax.training.sharding import make_sharding
from das_jax.training.step import compile_train_step, init_state, make_train_step


def learn(
    model: MaskedLM, masking: Masking, batch: Batch, devices: int
) -> tuple[list[dict[str, float]], Params]:
    """Two steps of DAS, dropout on, in which every example is another one each time."""
    sharding = make_sharding(devices)
    method = DAS(model, masking, DASSettings(), sharding.batch)
    # Adam turns rounding noise around zero into steps unless epsilon is larger than the noise.
    optimizer = Optimizer(adamw(0.9, 0.999, 1e-4, 0.01), lambda step: 1e-2)
    importance = {
        kind: jax.random.uniform(jax.random.key(5), shape)
        for kind, shape in unit_shapes(model.architecture).items()
    }
    memory = DASMemory(Units(**importance))
    params = model.init(jax.random.key(0))
    state = init_state(method, optimizer, params, memory, jax.random.key(3))
    state = sharding.replicate(state)
    step = compile_train_step(method, optimizer, sharding)
    rows = []
    for _ in range(2):
        state, metrics = step(state, sharding.shard_batch(batch))
        batch = batch._replace(index=batch.index + 8)
        rows.append({name: float(value) for name, value in metrics.items()})
    return rows, jax.device_get(state.params)


@pytest.mark.slow
def test_losses_and_parameters_do_not_depend_on_the_mesh(
    model: MaskedLM, masking: Masking, batch: Batch
) -> None:
    expected_rows, expected = learn(model, masking, batch, 1)
    assert expected_rows[0]["contrastive"] != expected_rows[1]["contrastive"], "dropout is on"
    for devices in (2, 4, 8):
        rows, params = learn(model, masking, batch, devices)
        for row, wanted in zip(rows, expected_rows, strict=True):
            assert row == pytest.approx(wanted, rel=1e-5), f"{devices} devices"
        for path, a, e in zip(
            parameter_paths(params), jax.tree.leaves(params), jax.tree.leaves(expected), strict=True
        ):
            if path.endswith("key/bias"):
                continue  # Its gradient is zero but for rounding noise, which Adam enlarges.
            # The tolerance of the golden arrays' trained parameters.
            np.testing.assert_allclose(a, e, atol=1e-4 * np.abs(e).max(), err_msg=path)


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
