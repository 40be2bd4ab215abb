"""What a checkpoint holds comes back with the shapes that it says, whatever a method made of them."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from das_jax.data.objective import HiddenTokens
from das_jax.methods.contract import Learned, Memory, Method, SecondMoment, Split
from das_jax.methods.policy import Policy
from das_jax.model.language_model import LanguageModel, Params
from das_jax.training import sharding as sharding_module
from das_jax.training.checkpoint import Checkpoints
from das_jax.training.optimizer import Optimizer, adamw
from das_jax.training.saved import (
    finished_shapes,
    saved_in_training,
    saved_when_finished,
    training_shapes,
)
from das_jax.training.sharding import Sharding, make_sharding
from das_jax.training.stages import Carried, Trunk
from das_jax.training.step import first_state, recipe


class Growing(Method):
    """A row for every domain, and an array of each parameter's own, which begins with one number."""

    def init(self, params: Params) -> Memory:
        return {"rows": jnp.zeros((1, 4)), "split": Split(jax.tree.map(jnp.zeros_like, params))}


class Averages(Policy):
    name = "averages"

    def init(self, params: Params) -> Memory:
        return jax.tree.map(jnp.zeros_like, params)


PARAMS = {"w": np.arange(16, dtype=np.float32), "graft": {"a": np.ones((3, 5), np.float32)}}
"""More than the model has, as if a method had inserted it."""
MEMORY = {
    "rows": np.arange(12, dtype=np.float32).reshape(3, 4),
    "split": Split({"w": np.arange(32, dtype=np.float32), "graft": {"a": np.full(7, 0.5)}}),
}
KEPT = {
    "tokens": np.arange(10, dtype=np.int32).reshape(2, 5),
    "key": np.array([2**63 + 1, 2**53 + 1], np.uint64),
    "hidden": np.array([[1.5, -3e38], [2.0**-130, 0.1]], jnp.bfloat16),
}


@pytest.mark.parametrize("finished", [False, True])
def test_a_checkpoint_says_what_it_holds(
    finished: bool, model: LanguageModel, objective: HiddenTokens, tmp_path: Path, monkeypatch: Any
) -> None:
    """A memory that grew, kept rows with 64-bit keys, policies; on another mesh than that it was saved on."""
    monkeypatch.setattr(sharding_module, "SMALLEST_SPLIT", 2)
    method = Growing(model, objective, None, "data")
    policies = (Averages(method, None),)
    optimizer = Optimizer(adamw(0.9, 0.999, 1e-8, 0.0), lambda step: 1e-2)
    made = recipe(method, optimizer, policies=policies)
    averages = {"averages": jax.tree.map(lambda x: x + 1, PARAMS)}
    sharding = make_sharding(8, "optimizer")
    rng = sharding.replicate(jax.random.key(0))
    state = first_state(made, sharding, PARAMS, MEMORY, rng, 2, averages)
    second_moment = SecondMoment(
        optax.tree.ones_like(state.params), sharding.replicate(jnp.int32(9))
    )
    trained = {"graft": jax.tree.map(jnp.negative, state.params["graft"])}
    if finished:
        learned = Learned(state.params, state.memory, KEPT)
        carried = Carried(learned, state.policies, second_moment, Trunk(trained))
        saved = saved_when_finished(carried)
    else:
        saved = saved_in_training(state, KEPT, Trunk(trained, second_moment))

    def shapes(sharding: Sharding, info: dict[str, Any]) -> dict[str, Any]:
        if finished:
            return finished_shapes(method, policies, sharding, info)
        return training_shapes(made, sharding, info)

    with Checkpoints(tmp_path, sharding, print) as checkpoints:
        checkpoints.save(1, saved, {})
    sharding = make_sharding(4, "parameters")
    with Checkpoints(tmp_path, sharding, print) as checkpoints:
        found = checkpoints.restore(1, lambda info: shapes(sharding, info)).state
    assert jax.tree.structure(found) == jax.tree.structure(saved)
    for new, old in zip(jax.tree.leaves(found), jax.tree.leaves(saved), strict=True):
        assert new.dtype == old.dtype
        np.testing.assert_array_equal(new, old)
    assert isinstance(found["kept"]["key"], np.ndarray)
    np.testing.assert_array_equal(found["memory"]["rows"], MEMORY["rows"])
    own = found["memory"]["split"].tree["w"]
    assert {shard.data.shape for shard in own.addressable_shards} == {(8,)}
