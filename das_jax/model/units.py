"""Units: what importance is measured of, and how they lie along the axes of the parameters they own."""

import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from das_jax.model.architecture import Architecture

T = TypeVar("T")


class Units(NamedTuple):
    """One number for every unit of a transformer: a gate, an importance or a soft mask.

    Attributes:
      heads: [..., L, H] attention heads, at the context vector before the output projection.
      intermediate: [..., L, F] first feed-forward neurons, at the pre-activation.
      output: [..., L, D] second feed-forward neurons, before dropout, residual and LayerNorm.
    """

    heads: jax.Array
    intermediate: jax.Array
    output: jax.Array


class Owner(NamedTuple):
    """The units of `kind` own a parameter: their array's axes lie along `axes` of the parameter.

    Where units are `shared`, an axis of the parameter may be shorter than theirs: each of its rows belongs to
    as many units that follow each other, as a key-value head to the heads that read it, and of their values
    the largest counts, or the mean.
    """

    kind: str
    axes: tuple[int, ...]
    shared: Literal["max", "mean"] | None = None


FREE = None
"""The owner of a parameter that belongs to no unit."""

Rules = Sequence[tuple[str, Owner | None]]


def sharing(rules: Rules, how: Literal["max", "mean"]) -> Rules:
    """The same rules, but for what counts of the units that share a row."""
    return tuple(
        (pattern, owner if owner is None or not owner.shared else owner._replace(shared=how))
        for pattern, owner in rules
    )


class Kind(NamedTuple):
    """A kind of unit, and the letters of its array's axes: the stack first, then the units."""

    name: str
    axes: str


HEADS, INTERMEDIATE, OUTPUT = Kind("heads", "LH"), Kind("intermediate", "LF"), Kind("output", "LD")
KINDS = (HEADS, INTERMEDIATE, OUTPUT)
"""The fields of `Units`."""


def unit_shapes(architecture: Architecture) -> dict[str, tuple[int, int]]:
    """The shape [L, U] of every kind, in the order of `Units`."""
    sizes = architecture.sizes
    return {kind.name: (sizes[kind.axes[0]], sizes[kind.axes[1]]) for kind in KINDS}


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


def shapes_by_path(params: Any) -> dict[str, tuple[int, ...]]:
    """The shape of every leaf by its path."""
    shapes = map(jnp.shape, jax.tree.leaves(params))
    return dict(zip(parameter_paths(params), shapes, strict=True))


def claims(params: Any, rules: Sequence[tuple[str, T]], unclaimed: str) -> list[T]:
    """What the first rule whose pattern matches the whole path says of every parameter, in the order of
    `jax.tree.leaves(params)`.

    Args:
      params: any tree.
      rules: pairs of a pattern and what is so of the parameters that it matches.
      unclaimed: the error's sentence; {!r} is the path.

    Raises:
      ValueError: a parameter that no rule claims.
    """

    def claim(path: str) -> T:
        for pattern, said in rules:
            if re.fullmatch(pattern, path):
                return said
        raise ValueError(unclaimed.format(path))

    return [claim(path) for path in parameter_paths(params)]


def of_rows(unit_values: jax.Array, owner: Owner, shape: tuple[int, ...]) -> jax.Array:
    """What is so of a parameter's rows: of several units that share one, the largest value or the mean.

    Moving a key moves every head that reads it: with the largest, the one that must not move decides.

    Args:
      unit_values: e.g. [L, H].
      owner: of the parameter.
      shape: of the parameter.
    """
    for number, axis in enumerate(owner.axes if owner.shared else ()):
        rows, units = shape[axis], unit_values.shape[number]
        if rows != units:
            around = unit_values.shape[:number], unit_values.shape[number + 1 :]
            grouped = unit_values.reshape(*around[0], rows, units // rows, *around[1])
            unit_values = (grouped.max if owner.shared == "max" else grouped.mean)(number + 1)
    return unit_values


def along(unit_values: jax.Array, owner: Owner, rank: int) -> jax.Array:
    """Reshapes unit values, e.g. [L, U], so that they broadcast against a parameter of that rank."""
    shape = [1] * rank
    for axis, size in zip(owner.axes, unit_values.shape, strict=True):
        shape[axis] = size
    return unit_values.reshape(shape)
