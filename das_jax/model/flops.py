"""Useful FLOPs of a model: the matrix products that it cannot do without, counted from its sizes.

A product of [a, b] and [b, c] counts 2abc.
"""

from das_jax.model.architecture import Architecture


def transformer_flops(architecture: Architecture, length: int) -> int:
    """One pass forward of one example through the layers, 2 FLOPs per parameter and token, and attention."""
    width, heads = architecture.hidden_size, architecture.num_heads * architecture.head_size
    projections = 4 * 2 * width * heads
    feed_forward = 2 * 2 * width * architecture.intermediate_size
    layer = length * (projections + feed_forward) + attention_flops(architecture, length)
    return architecture.num_layers * layer


def attention_flops(architecture: Architecture, length: int) -> int:
    """The two products of one layer's attention, of one example."""
    return 2 * 2 * length * length * architecture.num_heads * architecture.head_size


def lm_head_flops(architecture: Architecture, positions: int) -> int:
    """The LM head forward at some positions of one example."""
    width = architecture.hidden_size
    return positions * 2 * width * (width + architecture.vocab_size)
