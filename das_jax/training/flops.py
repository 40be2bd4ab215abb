"""Useful FLOPs of a train step: the matrix products that it cannot do without.

A pass forward has every product of the layers once; a pass forward and backward has it three times, or
twice if no gradients of weights are wanted. What a program computes again to save memory is not useful, nor
is a logit where nothing is predicted. An optimizer's own products, such as Muon's, count once a step: devices
that hold the whole state all compute the same.
"""

import functools

import jax

from das_jax.methods.partition import EVERYTHING, partition
from das_jax.model.flops import layer_attention_flops, lm_head_flops, transformer_flops
from das_jax.model.language_model import LanguageModel, Params
from das_jax.model.leaves import WORDS, claimed
from das_jax.training.muon import Muon
from das_jax.training.step import Recipe


def train_step_flops(recipe: Recipe, batch_size: int, length: int) -> int:
    """A train step over the global batch. Products that are no larger than the batch, such as similarities
    of examples, are left out.

    Args:
      recipe: how it learns.
      batch_size: examples over all devices.
      length: tokens of an example.
    """
    model, masked = recipe.plan.model, recipe.method.objective.most_predictions(length)
    length += model.prefix
    cost, layers = recipe.cost(), transformer_flops(model.architecture, length)
    graft = _graft_flops(recipe, length)
    frozen_layers, frozen_head = _of_frozen(recipe, length, masked)
    forward = layers + graft
    full = 3 * forward - frozen_layers
    head = 3 * lm_head_flops(model.architecture, masked) - frozen_head
    passes = round((cost.full * full + cost.heads * head + cost.forward * forward) * batch_size)
    return passes + _optimizer_flops(recipe)


def _optimizer_flops(recipe: Recipe) -> int:
    direction = recipe.optimizer.direction
    if not isinstance(direction, Muon):
        return 0
    trained, _ = partition(_shapes(recipe.plan.model), recipe.plan.trains)
    return direction.flops(trained)


# Tracing it takes a second or so, and the next stage mostly has the same model.
@functools.lru_cache(maxsize=4)
def _shapes(model: LanguageModel) -> Params:
    """Of its parameters, and those of its graft."""
    return jax.eval_shape(model.init, jax.random.key(0))


def _of_frozen(recipe: Recipe, length: int, masked: int) -> tuple[int, int]:
    """The products that would give the gradients of frozen matrices: those of the layers, and of the head."""
    if recipe.plan.trains == EVERYTHING:
        return 0, 0
    model = recipe.plan.model
    _, frozen = partition(_shapes(model), recipe.plan.trains)
    layers = head = 0
    for leaf, x in zip(claimed(frozen, model.leaves), jax.tree.leaves(frozen), strict=True):
        if leaf.projects and leaf.stacked:
            layers += 2 * length * x.size
        elif leaf.projects or (leaf == WORDS and model.architecture.tied):
            head += 2 * masked * x.size
    return layers, head


def _graft_flops(recipe: Recipe, length: int) -> int:
    """One pass forward of one example through a graft: its own products, and attention if it has layers."""
    graft, arch = recipe.plan.model.graft, recipe.plan.model.architecture
    if graft is None:
        return 0
    own = {"graft": _shapes(recipe.plan.model)["graft"]}
    leaves = zip(claimed(own, graft.leaves()), jax.tree.leaves(own), strict=True)
    products = sum(2 * length * x.size for leaf, x in leaves if leaf.projects)
    # A block attends as the layer before it.
    copied = () if graft.every is None else range(graft.every - 1, arch.num_layers, graft.every)
    return products + sum(layer_attention_flops(arch, length, layer) for layer in copied)
