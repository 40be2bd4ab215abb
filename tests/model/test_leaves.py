"""The table of parameters against the models it describes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from das_jax.model.classifier import Classifier
from das_jax.model.huggingface_weights import to_tensors
from das_jax.model.language_model import LanguageModel, Params, cast_matrices
from das_jax.model.leaves import (
    ATTENTION,
    EMBEDDINGS,
    ENCODER,
    FEED_FORWARD,
    LEAVES,
    Leaf,
    claimed,
    classifier_leaves,
    leaves_of,
    matrices_of,
    owners_of,
    rules_of,
    sides_of,
)
from das_jax.model.units import Kind, Owner, along, full_units, parameter_paths, unit_shapes


def shapes(params: Params) -> dict[str, tuple[int, ...]]:
    return dict(
        zip(parameter_paths(params), (x.shape for x in jax.tree.leaves(params)), strict=True)
    )


@pytest.mark.parametrize("tied", [True, False])
def test_it_lists_the_parameters_of_a_model_and_no_others(model: LanguageModel, tied: bool) -> None:
    architecture = dataclasses.replace(model.architecture, tied=tied)
    params = jax.eval_shape(LanguageModel(architecture).init, jax.random.key(0))
    table = {leaf.path: leaf.shape(architecture.sizes) for leaf in leaves_of(architecture)}
    assert table == shapes(params)


def test_it_lists_the_parameters_of_a_classifier(model: LanguageModel) -> None:
    params = jax.eval_shape(
        lambda key: Classifier(model, 3).init(model.init(key), key), jax.random.key(0)
    )
    sizes = {**model.architecture.sizes, "C": 3}
    table = classifier_leaves(model.architecture)
    assert {leaf.path: leaf.shape(sizes) for leaf in table} == shapes(params)


def test_every_parameter_of_an_encoder_is_in_one_part_of_it() -> None:
    for leaf in ENCODER:
        parts = [leaf.path.startswith(f"{x}/") for x in (ATTENTION, FEED_FORWARD, EMBEDDINGS)]
        assert sum(parts) == (not leaf.path.startswith("final_norm/"))


def test_matrices_are_cast_and_what_is_small_is_not(params: Params) -> None:
    cast = cast_matrices(params, jnp.bfloat16)
    for path, x in zip(parameter_paths(cast), jax.tree.leaves(cast), strict=True):
        matrix = path.endswith(("/kernel", "/embedding"))
        assert x.dtype == (jnp.bfloat16 if matrix else jnp.float32), path
    assert sum(matrices_of(params)) == 10


def test_the_two_sides_protect_what_lies_between_used_units(
    model: LanguageModel, params: Params
) -> None:
    """In HuggingFace's layout, [out, in], as HAT states it: 1 - min(A_out, A_in), 1 without units."""
    random = np.random.default_rng(0)
    used = {
        kind: random.uniform(size=shape) for kind, shape in unit_shapes(model.architecture).items()
    }

    def scale(x: jax.Array, *sides: Owner | None) -> np.ndarray:
        used_of_sides = [
            1.0 if side is None else np.asarray(along(jnp.asarray(used[side.kind]), side, x.ndim))
            for side in sides
        ]
        return np.broadcast_to(1 - np.minimum(*used_of_sides), x.shape)

    arrays, treedef = jax.tree.flatten(params)
    scales = [scale(x, *sides) for x, sides in zip(arrays, sides_of(params), strict=True)]
    tensors = to_tensors(jax.tree.unflatten(treedef, scales), model.architecture)

    def close(name: str, expected: np.ndarray) -> None:
        tensor = tensors.pop(f"roberta.encoder.layer.1.{name}")
        np.testing.assert_allclose(tensor, np.broadcast_to(expected, tensor.shape), rtol=1e-6)

    heads_HK = np.repeat(used["heads"][1], model.architecture.head_size)
    intermediate_F, output_D = used["intermediate"][1], used["output"][1]
    for name in ("query", "key", "value"):
        close(f"attention.self.{name}.weight", 1 - heads_HK[:, None])
        close(f"attention.self.{name}.bias", 1 - heads_HK)
    close("attention.output.dense.weight", 1 - heads_HK[None])
    close("intermediate.dense.weight", 1 - intermediate_F[:, None])
    close("intermediate.dense.bias", 1 - intermediate_F)
    close("output.dense.weight", 1 - np.minimum(output_D[:, None], intermediate_F[None]))
    close("output.dense.bias", 1 - output_D)
    for name, tensor in tensors.items():
        if "layer.0" not in name:
            assert not tensor.any(), name


def test_a_graft_brings_leaves_of_its_own() -> None:
    bottleneck = Kind("bottleneck", "LR")
    graft = (
        Leaf("graft/(attention|feed_forward)/down/kernel", "LD->R", writes=bottleneck),
        Leaf("graft/(attention|feed_forward)/up/kernel", "LR->D", reads=bottleneck),
        Leaf("graft/(attention|feed_forward)/up/bias", "LD"),
    )
    up = {"kernel": jnp.ones((2, 3, 4)), "bias": jnp.ones((2, 4))}
    params = {"graft": {"attention": {"down": {"kernel": jnp.ones((2, 4, 3))}, "up": up}}}
    assert claimed(params, (*graft, *LEAVES)) == [graft[0], graft[2], graft[1]]
    assert owners_of(params, rules_of(graft)) == [
        Owner("bottleneck", (0, 2)),
        None,
        Owner("bottleneck", (0, 1)),
    ]


def test_what_methods_put_beside_a_model_is_cast_like_its_modules(model: LanguageModel) -> None:
    module = {"output": {"kernel": jnp.ones((2, 4, 3)), "bias": jnp.ones((2, 3))}}
    graft = {"acl": module, "embedding": full_units(model.architecture, 0.0)}
    cast = cast_matrices({"graft": graft}, jnp.bfloat16)["graft"]
    assert cast["acl"]["output"]["kernel"].dtype == jnp.bfloat16
    small = [cast["acl"]["output"]["bias"], *cast["embedding"]]
    assert all(x.dtype == jnp.float32 for x in small)


@pytest.mark.parametrize("path", ["graft/down/weight", "layers/down/kernel", "kernel"])
def test_a_parameter_without_a_leaf_is_refused_by_name(path: str) -> None:
    params = unflatten_dict({path: jnp.ones((2, 3))}, sep="/")
    with pytest.raises(ValueError, match=f"no leaf claims the parameter '{path}': what stands"):
        cast_matrices(params, jnp.bfloat16)


def test_a_letter_on_both_sides_is_told_apart() -> None:
    streams = Kind("streams", "ND")
    leaf = Leaf("graft/kernel", "ND->D", writes=streams, reads=streams)
    assert leaf.sides == (Owner("streams", (0, 2)), Owner("streams", (0, 1)))
    assert leaf.owner == Owner("streams", (0, 2))
    assert leaf.tensor_axes == ("D", "D")
