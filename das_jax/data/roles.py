"""What a token of a chunk is there for, beside which one it is: in bits that no id reaches.

Chunks of decoders have roles, those of masked models are ids alone. A role stays with its token wherever the
chunk goes: to disk, into a batch, among the kept rows. So where a text ends is never read off an id: a
decoder may have no padding token, or pad with the one that ends its texts.
"""

from typing import TypeVar

import jax
import numpy as np

Tokens = TypeVar("Tokens", np.ndarray, jax.Array)

OPENS = 1 << 28
"""The first token of a document, or of an example."""
GIVEN = 1 << 29
"""Read and never predicted: what opens a text, and what a response answers."""
PADDING = 1 << 30
"""Neither read nor predicted."""


def ids(tokens: Tokens) -> Tokens:
    """The tokens without their roles."""
    return tokens & (OPENS - 1)


def has(tokens: Tokens, roles: int) -> Tokens:
    """True where a token has any of these roles."""
    return (tokens & roles) != 0
