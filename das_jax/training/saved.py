"""What a checkpoint holds of a stage, and its shapes, as the checkpoint itself says them."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from das_jax.methods.contract import Learned, Method, SecondMoment
from das_jax.methods.policy import Policy
from das_jax.model.units import parameter_paths
from das_jax.training.sharding import Sharding
from das_jax.training.stages import Carried, Trunk
from das_jax.training.step import Recipe, TrainState, init_state


def saved_in_training(
    state: TrainState, kept: Mapping[str, np.ndarray], trunk: Trunk | None = None
) -> dict[str, Any]:
    """Of a stage in training; the random key and the domain follow from the configuration, and the place in
    the data from the step. Parts without arrays are left out.
    """
    parts = {**state._asdict(), "kept": dict(kept), "trunk": trunk}
    del parts["rng"], parts["domain"]
    return _not_empty(parts)


def saved_when_finished(finished: Carried) -> dict[str, Any]:
    """Of a finished stage: what it hands to the next."""
    learned = finished.learned
    return _not_empty(
        {
            "params": learned.params,
            "memory": learned.memory,
            "kept": dict(learned.kept),
            "policies": finished.policies,
            "second_moment": finished.second_moment,
            "trunk": finished.trunk,
        }
    )


def _not_empty(parts: dict[str, Any]) -> dict[str, Any]:
    return {name: part for name, part in parts.items() if jax.tree.leaves(part)}


def params_shapes(info: dict[str, Any]) -> Any:
    """The tree of parameters that a checkpoint holds, whatever a method made of the model."""
    return _dicts(info, "params")


def learned_shapes(method: Method, sharding: Sharding, info: dict[str, Any]) -> dict[str, Any]:
    """What a method carries: parameters, memory and the rows it kept."""
    params = params_shapes(info)
    found = {"params": sharding.shapes("params", params)}
    if "memory" in info["shapes"]:
        memory = _as_saved("memory", jax.eval_shape(method.init, params), info)
        found["memory"] = sharding.shapes("memory", memory)
    if "kept" in info["shapes"]:
        found["kept"] = _kept(info)
    return found


def saved_learned(state: dict[str, Any]) -> Learned:
    """The same, as it was read; what has no arrays is not in a checkpoint."""
    return Learned(state["params"], state.get("memory", ()), state.get("kept", {}))


def saved_policies(state: dict[str, Any], policies: tuple[Policy, ...]) -> dict[str, Any]:
    """What each policy carries, as it was read; that of one that carries nothing is not in a checkpoint."""
    return {policy.name: () for policy in policies} | state.get("policies", {})


def finished_shapes(
    method: Method, policies: tuple[Policy, ...], sharding: Sharding, info: dict[str, Any]
) -> dict[str, Any]:
    """All that a finished stage hands on."""
    found = learned_shapes(method, sharding, info)
    if "policies" in info["shapes"]:
        found["policies"] = _policies(policies, sharding, info)
    if "second_moment" in info["shapes"]:
        second_moment = SecondMoment(**_dicts(info, "second_moment"))
        found["second_moment"] = sharding.shapes("opt_state", second_moment)
    return found | _trunk(sharding, info)


def training_shapes(recipe: Recipe, sharding: Sharding, info: dict[str, Any]) -> dict[str, Any]:
    """A stage in training."""
    params = params_shapes(info)
    memory = _as_saved("memory", jax.eval_shape(recipe.method.init, params), info)
    policies = {policy.name: jax.eval_shape(policy.init, params) for policy in recipe.policies}
    policies = _as_saved("policies", policies, info)

    def state(params: Any, memory: Any, policies: Any) -> Any:
        return init_state(recipe, params, memory, jax.random.key(0), 0, policies)

    shapes = jax.eval_shape(state, params, memory, policies)
    found = {
        part: sharding.shapes(part, tree)
        for part, tree in shapes._asdict().items()
        if part in info["shapes"]
    }
    if "kept" in info["shapes"]:
        found["kept"] = _kept(info)
    return found | _trunk(sharding, info)


def _trunk(sharding: Sharding, info: dict[str, Any]) -> dict[str, Any]:
    """That of a stage, as a part of what is read, if there is one."""
    if "trunk" not in info["shapes"]:
        return {}
    parts = _dicts(info, "trunk")
    second_moment = SecondMoment(**parts["second_moment"]) if "second_moment" in parts else None
    return {"trunk": sharding.shapes("opt_state", Trunk(parts["params"], second_moment))}


def _policies(policies: tuple[Policy, ...], sharding: Sharding, info: dict[str, Any]) -> Any:
    params = params_shapes(info)
    memory = {policy.name: jax.eval_shape(policy.init, params) for policy in policies}
    return sharding.shapes("policies", _as_saved("policies", memory, info))


def _dicts(info: dict[str, Any], part: str) -> dict[str, Any]:
    """A part, as dicts in dicts, with the shapes that were saved."""
    shapes = {path: _shape(*each) for path, each in info["shapes"][part].items()}
    return unflatten_dict(shapes, sep="/")


def _kept(info: dict[str, Any]) -> dict[str, np.ndarray]:
    """Host arrays are read as host arrays."""
    return {name: np.empty(shape, dtype) for name, (shape, dtype) in info["shapes"]["kept"].items()}


def _as_saved(part: str, tree: Any, info: dict[str, Any]) -> Any:
    """A tree of this structure with the shapes that were saved: what a method carries may grow."""
    saved = info["shapes"].get(part, {})
    leaves = [
        _shape(*saved[path]) if path in saved else leaf
        for path, leaf in zip(parameter_paths(tree), jax.tree.leaves(tree), strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def _shape(shape: list[int], dtype: str) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(dtype))
