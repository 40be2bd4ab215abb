"""Useful FLOPs: the matrix products that a step cannot do without, counted from the model's sizes.

A product of [a, b] and [b, c] counts 2abc. A pass forward has every product of the encoder once; a pass
forward and backward has it three times, or twice if no gradients of weights are wanted. What a program
computes again to save memory is not useful, nor is a logit where nothing is predicted.
"""

from typing import Any

from das_jax.continual.das import DASSettings
from das_jax.continual.importance import Losses, hidden_proxy_losses, masked_lm_losses
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


def contrastive_flops(architecture: Architecture, batch_size: int) -> int:
    """The similarities of one anchor with two candidates for every example of the global batch, forward."""
    return 2 * architecture.hidden_size * 2 * batch_size


def encoder_passes(settings: Any) -> int:
    """How often a train step runs the encoder, each time forward and backward."""
    if isinstance(settings, DASSettings):
        return 3 if settings.contrastive.anchor == "masked" else 4
    return 1


def train_step_flops(
    architecture: Architecture, settings: Any, batch_size: int, length: int, masked: int
) -> int:
    """A train step over the global batch.

    Args:
      architecture: of the model.
      settings: of the method.
      batch_size: examples over all devices.
      length: tokens of an example.
      masked: predicted positions of an example.
    """
    forward = encoder_passes(settings) * encoder_flops(architecture, length)
    forward += lm_head_flops(architecture, masked)
    if isinstance(settings, DASSettings):
        forward += contrastive_flops(architecture, batch_size)
    return 3 * forward * batch_size


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
