"""What stands in a memory for a tree that is not there yet, or not needed.

The structure of a memory stays the same, while its shapes may change: a number in the place of every array
costs nothing, and what is traced sees by the shape that there is nothing.
"""

from typing import Any

import jax
import jax.numpy as jnp

from das_jax.methods.partition import Rules, merged, partition
from das_jax.model.language_model import Params


def placeholder(tree: Any) -> Any:
    """A tree of the same structure that holds nothing: 0, [], in the place of every array."""
    return jax.tree.map(lambda x: jnp.zeros((), x.dtype), tree)


def only(params: Params, *rules: Rules) -> Params:
    """The parameters that all rules choose, with placeholders for the others."""
    for each in rules:
        chosen, others = partition(params, each)
        params = merged(chosen, placeholder(others))
    return params


def is_placeholder(tree: Any) -> bool:
    """Whether a tree is one; parameters have an axis at least."""
    return all(x.ndim == 0 for x in jax.tree.leaves(tree))
