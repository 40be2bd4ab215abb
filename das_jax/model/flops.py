"""Useful FLOPs of a model: the matrix products that it cannot do without, counted from its sizes.

A product of [a, b] and [b, c] counts 2abc. Of attention counts what a token reads: half of the square in a
decoder, and no more than a window.
"""

from das_jax.model.architecture import Architecture


def transformer_flops(architecture: Architecture, length: int) -> int:
    """One pass forward of one example through the layers, 2 FLOPs per parameter and token, and attention."""
    arch = architecture
    heads = 2 * arch.num_heads + 2 * arch.kv_heads
    projections = 2 * arch.hidden_size * arch.head_size * heads
    feed_forward = 2 * arch.hidden_size * arch.intermediate_size * (3 if arch.gated else 2)
    layers = arch.num_layers * length * (projections + feed_forward)
    return layers + attention_flops(arch, length)


def attention_flops(architecture: Architecture, length: int) -> int:
    """The two products of attention in all layers, of one example."""
    layers = range(architecture.num_layers)
    return sum(layer_attention_flops(architecture, length, layer) for layer in layers)


def layer_attention_flops(architecture: Architecture, length: int, layer: int) -> int:
    """The same of one layer."""
    pairs = _pairs(architecture, length, layer)
    return 2 * 2 * pairs * architecture.num_heads * architecture.head_size


def lm_head_flops(architecture: Architecture, positions: int) -> int:
    """The LM head forward at some positions of one example."""
    width = architecture.hidden_size
    transform = width if architecture.head == "transform" else 0
    return positions * 2 * width * (transform + architecture.vocab_size)


def _pairs(architecture: Architecture, length: int, layer: int) -> int:
    """How many tokens all tokens read, themselves included."""
    reach = architecture.reaches[layer] if architecture.reaches else None
    far = length - 1 if reach is None else min(reach, length - 1)
    # The first `far` tokens read fewer on their left, by 1 + 2 + ... + far in all.
    before = length * far - far * (far + 1) // 2
    return length + before * (1 if architecture.causal else 2)
