"""Units: what importance is measured of, and which parameter each of them owns."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from das_jax.model.architecture import Architecture


class Units(NamedTuple):
    """One number for every unit of an encoder: a gate, an importance or a soft mask.

    Attributes:
      heads: [..., L, H] attention heads, at the context vector before the output projection.
      intermediate: [..., L, F] first feed-forward neurons, at the pre-activation.
      output: [..., L, D] second feed-forward neurons, before dropout, residual and LayerNorm.
    """

    heads: jax.Array
    intermediate: jax.Array
    output: jax.Array


class Owner(NamedTuple):
    """The units of `kind` own a parameter: their array's axes lie along `axes` of the parameter."""

    kind: str
    axes: tuple[int, ...]


FREE = None
"""The owner of a parameter that belongs to no unit."""

Rules = Sequence[tuple[str, Owner | None]]

OWNERS: Rules = (
    (r"layers/attention/(query|key|value)/kernel", Owner("heads", (0, 2))),
    (r"layers/attention/(query|key|value)/bias", Owner("heads", (0, 1))),
    (r"layers/attention/output/kernel", Owner("heads", (0, 1))),
    (r"layers/attention/output/bias", FREE),
    (r"layers/feed_forward/intermediate/kernel", Owner("intermediate", (0, 2))),
    (r"layers/feed_forward/intermediate/bias", Owner("intermediate", (0, 1))),
    (r"layers/feed_forward/output/kernel", Owner("output", (0, 2))),
    (r"layers/feed_forward/output/bias", Owner("output", (0, 1))),
    (r"layers/(attention|feed_forward)/layer_norm/(scale|bias)", FREE),
    (r"embeddings/.*", FREE),
    (r"lm_head/.*", FREE),
)
"""The encoder's parameters (`layers/` is stacked, [L, ...]); the first pattern that matches the whole
path decides."""


def unit_shapes(architecture: Architecture) -> dict[str, tuple[int, int]]:
    """The shape [L, U] of every kind, in the order of `Units`."""
    return {
        "heads": (architecture.num_layers, architecture.num_heads),
        "intermediate": (architecture.num_layers, architecture.intermediate_size),
        "output": (architecture.num_layers, architecture.hidden_size),
    }


def full_units(
    architecture: Architecture,
    value: float,
    leading: tuple[int, ...] = (),
    dtype: Any = jnp.float32,
) -> Units:
    """Units that all hold `value`, [*leading, L, U]."""
    shapes = unit_shapes(architecture).items()
    return Units(**{kind: jnp.full((*leading, *shape), value, dtype) for kind, shape in shapes})


def parameter_paths(params: Any) -> list[str]:
    """The path of every leaf, its keys joined by slashes, in the order of `jax.tree.leaves`."""
    paths, _ = jax.tree_util.tree_flatten_with_path(params)
    return [
        "/".join(
            str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path
        )
        for path, _ in paths
    ]


def owners_of(params: Any, rules: Rules = OWNERS) -> list[Owner | None]:
    """The owner of every parameter, in the order of `jax.tree.leaves(params)`.

    Raises:
      ValueError: a parameter that no rule claims.
    """
    owners = []
    for path in parameter_paths(params):
        for pattern, owner in rules:
            if re.fullmatch(pattern, path):
                owners.append(owner)
                break
        else:
            raise ValueError(
                f"no rule claims the parameter {path!r}: add one that names its owner, or FREE if it has none"
            )
    return owners


def along(unit_values: jax.Array, owner: Owner, rank: int) -> jax.Array:
    """Reshapes unit values, e.g. [L, U], so that they broadcast against a parameter of that rank."""
    shape = [1] * rank
    for axis, size in zip(owner.axes, unit_values.shape, strict=True):
        shape[axis] = size
    return unit_values.reshape(shape)
