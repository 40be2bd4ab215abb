"""Useful FLOPs of a train step: the matrix products that it cannot do without.

A pass forward has every product of the encoder once; a pass forward and backward has it three times, or
twice if no gradients of weights are wanted. What a program computes again to save memory is not useful, nor
is a logit where nothing is predicted.
"""

from das_jax.model.flops import encoder_flops, lm_head_flops
from das_jax.training.step import Recipe


def train_step_flops(recipe: Recipe, batch_size: int, length: int) -> int:
    """A train step over the global batch. Products that are no larger than the batch, such as similarities
    of examples, are left out.

    Args:
      recipe: how it learns.
      batch_size: examples over all devices.
      length: tokens of an example.
    """
    method, architecture = recipe.method, recipe.plan.model.architecture
    cost, encoder = recipe.cost(), encoder_flops(architecture, length)
    forward = cost.full * encoder + lm_head_flops(architecture, method.masking.num_masked(length))
    return round((3 * forward + cost.forward * encoder) * batch_size)
