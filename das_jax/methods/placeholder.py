"""What stands in a memory for a tree that is not there yet, or not needed.

The structure of a memory stays the same, while its shapes may change: a number in the place of every array
costs nothing, and what is traced sees by the shape that there is nothing.
"""

from typing import Any

import jax
import jax.numpy as jnp


def placeholder(tree: Any) -> Any:
    """A tree of the same structure that holds nothing: 0, [], in the place of every array."""
    return jax.tree.map(lambda x: jnp.zeros((), x.dtype), tree)


def is_placeholder(tree: Any) -> bool:
    """Whether a tree is one; parameters have an axis at least."""
    return all(x.ndim == 0 for x in jax.tree.leaves(tree))
