"""Where L2 pulls, from when on, and how hard; its distance is in tests/test_golden_systems.py."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from das_jax.data.objective import HiddenTokens
from das_jax.methods.contract import Learned, Moment, UpdateTrace
from das_jax.methods.l2 import L2, L2Memory
from das_jax.methods.settings.whole_model import L2Settings
from das_jax.model.language_model import LanguageModel, Params
from das_jax.training.optimizer import AdamW, Optimizer

START, LEFT, NOW = ({"x": jnp.array(x)} for x in ([0.0, 0.0], [1.0, 1.0], [3.0, 0.5]))
GRADIENT = {"x": jnp.array([2.0, -4.0])}
SIGNS, RATE = np.array([1.0, -1.0]), 0.125
"""What Adam makes of it in its first step."""


def stepped(method: L2, memory: L2Memory) -> np.ndarray:
    """How far the first step goes, in learning rates."""
    transforms = method.transforms(memory, Moment(*map(jnp.int32, (1, 0)), 1, jax.random.key(0)))
    optimizer = Optimizer(AdamW(0.9, 0.999, 1e-8, 0.0), lambda step: RATE)
    state = optimizer.init(NOW, transforms)
    after, _, _ = optimizer.update(GRADIENT, state, NOW, transforms, jnp.int32(0))
    return np.asarray(NOW["x"] - after["x"]) / RATE


def penalty(method: L2, memory: L2Memory, params: Params) -> float:
    trace = UpdateTrace(params, params, params, params, optax.identity(), ())
    return float(method.observe(memory, trace)["penalty"])


@pytest.mark.parametrize(
    ("anchor", "pulled", "usual"),
    [("previous", (None, LEFT), 1.0), ("start", (START, START), 0.1)],
)
def test_it_pulls_to_what_was_left_or_to_the_start(
    model: LanguageModel, objective: HiddenTokens, anchor: Any, pulled: Any, usual: float
) -> None:
    """In the first domain and in the second; decoupled, as hard as lambda says, and under Adam not at all in
    the first step, which is as long whatever the gradient is.
    """
    beside, through, default = (
        L2(model, objective, L2Settings(anchor=anchor, **others))
        for others in ({"strength": 0.5, "decoupled": True}, {"strength": 0.5}, {})
    )
    domain: Any = SimpleNamespace()
    memory = beside.init(START)
    for towards in pulled:
        distance = 0 if towards is None else np.asarray(NOW["x"] - towards["x"])
        np.testing.assert_allclose(stepped(beside, memory), SIGNS + 0.5 * distance, rtol=1e-5)
        np.testing.assert_allclose(stepped(through, memory), SIGNS, rtol=1e-5)
        square = np.sum(np.square(distance))
        assert penalty(through, memory, NOW) == pytest.approx(0.25 * square)
        assert penalty(default, memory, NOW) == pytest.approx(usual / 2 * square)
        if towards is not None:
            assert penalty(through, memory, towards) == 0
        memory = beside.end(Learned(LEFT, memory), domain).memory
