"""Useful FLOPs: the matrix products that a step cannot do without, counted from the model's sizes.

A product of [a, b] and [b, c] counts 2abc. A pass forward has every product of the encoder once; a pass
forward and backward has it three times, or twice if no gradients of weights are wanted. What a program
computes again to save memory is not useful, nor is a logit where nothing is predicted.
"""

from das_jax.methods.contract import Method
from das_jax.methods.das.importance import Losses, hidden_proxy_losses, masked_lm_losses
from das_jax.model.architecture import Architecture


def encoder_flops(architecture: Architecture, length: int) -> int:
    """One pass forward of one example through the encoder, 2 FLOPs per parameter and token, and attention."""
    width, heads = architecture.hidden_size, architecture.num_heads * architecture.head_size
    projections = 4 * 2 * width * heads
    feed_forward = 2 * 2 * width * architecture.intermediate_size
    attention = 2 * 2 * length * heads
    return architecture.num_layers * length * (projections + feed_forward + attention)


def lm_head_flops(architecture: Architecture, positions: int) -> int:
    """The LM head forward at some positions of one example."""
    width = architecture.hidden_size
    return positions * 2 * width * (width + architecture.vocab_size)


def train_step_flops(method: Method, batch_size: int, length: int) -> int:
    """A train step over the global batch. Products that are no larger than the batch, such as similarities
    of examples, are left out.

    Args:
      method: how it learns.
      batch_size: examples over all devices.
      length: tokens of an example.
    """
    architecture = method.model.architecture
    forward = method.encoder_passes() * encoder_flops(architecture, length)
    forward += lm_head_flops(architecture, method.masking.num_masked(length))
    return round(3 * forward * batch_size)


def importance_flops(
    architecture: Architecture, losses: Losses, batch_size: int, length: int, masked: int
) -> int:
    """Gate gradients of a batch: products of weights run twice, the two products of attention, neither of
    which is with a weight, three times.
    """
    head = architecture.num_heads * architecture.head_size
    attention = architecture.num_layers * length * 2 * 2 * length * head
    encoder = 2 * encoder_flops(architecture, length) + attention
    if losses is masked_lm_losses:
        return batch_size * (encoder + 2 * lm_head_flops(architecture, masked))
    logits = 0 if losses is hidden_proxy_losses else 2 * lm_head_flops(architecture, length)
    return batch_size * 2 * (encoder + logits)
