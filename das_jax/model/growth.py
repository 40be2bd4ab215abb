"""Growth: a wider or deeper model made of a smaller one (Chen et al., Net2Net, ICLR 2016; Qin et al., ELLE,
Findings of ACL 2022).

Every unit of the new model copies one of the old. What a unit gives is copied, and what reads it is divided
by the number of its copies. The model computes what it did if these are

- feed-forward units, by any map;
- heads, whose size is kept, by any map;
- features, each with equally many copies, as LayerNorm's mean and variance change otherwise. A word embedding
  that is the decoder, too, cannot be both copied and divided: what the decoder reads is divided instead.

A layer's copy comes after it, and is one step more than there were: where LayerNorm comes last, this changes
what the model computes.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from das_jax.model.architecture import Architecture
from das_jax.model.language_model import Params
from das_jax.model.leaves import MODEL, STACKS, Leaf, claimed

Maps = Mapping[str, np.ndarray]
"""By the letter of an axis, F, H, D or L: for every new index, the old one that it copies."""

SIZES = {"L": "num_layers", "H": "num_heads", "D": "hidden_size", "F": "intermediate_size"}
"""The number of an architecture that is the length of an axis."""

DECODED = ("lm_head/layer_norm/scale", "lm_head/layer_norm/bias")
"""What gives the decoder's input; divided where the decoder, tied to the word embedding, is not."""


def grown_architecture(architecture: Architecture, maps: Maps) -> Architecture:
    """The architecture after growth; a head keeps its size only if features and heads grow together."""
    sizes = {SIZES[letter]: len(order) for letter, order in maps.items()}
    return dataclasses.replace(architecture, **sizes)  # type: ignore[arg-type]


def maps_between(
    before: Architecture, after: Architecture, random: np.random.Generator
) -> dict[str, np.ndarray]:
    """What copies what, for every axis that grows: layers evenly spread, each copy after its original; units
    drawn at random, none of which gets a second copy before every other has one.

    Args:
      before: the small model.
      after: the large one; at most twice as many layers.
      random: draws the units.
    """
    maps = {}
    for letter in SIZES:
        old, new = before.sizes[letter], after.sizes[letter]
        if new > old:
            maps[letter] = _deeper(old, new) if letter in STACKS else _wider(old, new, random)
    return maps


def _wider(old: int, new: int, random: np.random.Generator) -> np.ndarray:
    copies = [random.permutation(old) for _ in range((new - 1) // old)]
    return np.concatenate([np.arange(old), *copies])[:new]


def _deeper(old: int, new: int) -> np.ndarray:
    more = new - old
    copied = (2 * np.arange(more) + 1) * old // (2 * more)
    return np.sort(np.concatenate([np.arange(old), copied]))


def grown(
    params: Params,
    architecture: Architecture,
    maps: Maps,
    noise: float = 0.0,
    key: jax.Array | None = None,
) -> Params:
    """The parameters of the grown model.

    Copies have equal gradients, so they would stay equal for ever but for dropout. `noise` parts them: what
    reads them differs, by numbers that sum to 0 over the copies of a unit, so that the function stays.

    Args:
      params: of the model without a graft.
      architecture: of that model.
      maps: what copies what.
      noise: its standard deviation, relative to that of the matrix it is added to, layer by layer.
      key: for the noise.
    """
    if "H" in maps:  # Every head has keys and values of its own.
        maps = {**maps, "G": maps["H"]}
    arrays, treedef = jax.tree.flatten(params)
    found = []
    for number, (leaf, x) in enumerate(zip(claimed(params, MODEL), arrays, strict=True)):
        divided = leaf.summed
        if architecture.tied and leaf.path in DECODED:
            divided = range(leaf.letters.index("D"), leaf.letters.index("D") + 1)
        for axis, letter in enumerate(leaf.letters):
            if letter in maps:
                x = jnp.take(x, maps[letter], axis=axis)
        for axis in divided:
            if (order := maps.get(leaf.letters[axis])) is None:
                continue
            x = x / _along(_copies(order), axis, x)
            if noise and leaf.projects:
                assert key is not None
                x = x + noise * _noise(jax.random.fold_in(key, number), leaf, x, axis, order)
        found.append(x)
    return jax.tree.unflatten(treedef, found)


def _copies(order: np.ndarray) -> np.ndarray:
    """How many copies there are of the unit that each new one is."""
    return np.bincount(order)[order]


def _noise(key: jax.Array, leaf: Leaf, x: jax.Array, axis: int, order: np.ndarray) -> jax.Array:
    """Normal numbers with the standard deviation of each layer's matrix, which sum to 0 over the copies of a
    unit; 0 for a unit that has no copy.
    """
    drawn = jnp.moveaxis(jax.random.normal(key, x.shape, x.dtype), axis, 0)
    sums = jax.ops.segment_sum(drawn, order, int(order.max()) + 1)
    copies = _copies(order)
    centred = drawn - sums[order] / _along(copies, 0, x)
    centred = centred * _along(np.sqrt(copies / np.maximum(copies - 1, 1)), 0, x)
    one = tuple(range(int(leaf.stacked), x.ndim))
    return jnp.moveaxis(centred, 0, axis) * jnp.std(x, axis=one, keepdims=True)


def _along(values: np.ndarray, axis: int, x: jax.Array) -> jax.Array:
    """Values in the type of an array and along one of its axes."""
    shape = [1] * x.ndim
    shape[axis] = len(values)
    return jnp.asarray(values, x.dtype).reshape(shape)
