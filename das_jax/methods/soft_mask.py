"""The soft mask: an optax transformation that protects important units (Ke et al., ICLR 2023, eq. 7)."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from das_jax.methods.settings.das import SoftMaskSettings as SoftMaskSettings
from das_jax.model.leaves import OWNERS, owners_of
from das_jax.model.units import FREE as FREE
from das_jax.model.units import Owner, Rules, along, of_rows, parameter_paths

TINY = 1e-30

OVERLAP_DECAY = 0.99
"""Of the mean of the overlap over steps: it remembers about a hundred of them."""


def soft_mask(importance: Any, rules: Rules = OWNERS) -> optax.GradientTransformation:
    """Scales what comes in by 1 - I of the unit that owns each parameter; parameters without an owner pass.

    Before the optimizer it scales the gradient, as the paper writes it; but Adam divides by the
    gradient's own scale and nearly undoes it. After the optimizer, weight decay included, it scales
    the movement itself. On the gradient of Adam's first moment alone it scales the movement but for weight
    decay, as the second moment still holds the gradient's true size.

    It needs nothing else of das_jax. Importance is any object or dict that holds one array per kind of
    unit, and a table of rules says which axes of a parameter those arrays lie along. Importance is checked
    here, its shapes as soon as there are parameters; what is traced has a shape only.

    >>> import jax.numpy as jnp
    >>> import optax
    >>> from das_jax.methods.soft_mask import FREE, Owner, soft_mask
    >>> params = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3), "scale": jnp.ones(3)}
    >>> rules = [("kernel", Owner("neurons", (1,))), ("bias", Owner("neurons", (0,))), ("scale", FREE)]
    >>> importance = {"neurons": jnp.array([0.0, 0.5, 1.0])}
    >>> optimizer = optax.chain(optax.scale_by_adam(), soft_mask(importance, rules), optax.scale(-0.1))
    >>> gradients = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3), "scale": jnp.ones(3)}
    >>> updates, _ = optimizer.update(gradients, optimizer.init(params))
    >>> print(updates["kernel"].round(3))
    [[-0.1  -0.05 -0.  ]
     [-0.1  -0.05 -0.  ]]
    >>> print(updates["scale"].round(3))
    [-0.1 -0.1 -0.1]
    >>> optimizer.init({"weight": jnp.ones(3)})
    Traceback (most recent call last):
    ValueError: no rule claims the parameter 'weight': add one that names its owner, or FREE if it has none

    A path is all keys on the way to the parameter, joined by slashes; a place in a list is its number. A
    pattern is a regular expression that must match the whole path, so `kernel` is no rule for a `kernel`
    further down, but `.*/kernel` is. The first rule that matches decides:

    >>> nested = {"in": {"kernel": jnp.ones((2, 3))}, "rest": [{"kernel": jnp.ones((3, 1))}]}
    >>> rules = [("rest/0/kernel", FREE), (".*/kernel", Owner("neurons", (1,)))]
    >>> masked, _ = soft_mask(importance, rules).update(nested, optax.EmptyState())
    >>> print(masked["in"]["kernel"][0], masked["rest"][0]["kernel"][0])
    [1.  0.5 0. ] [1.]
    >>> soft_mask(importance, [("kernel", Owner("neurons", (1,)))]).init(nested)
    Traceback (most recent call last):
    ValueError: no rule claims the parameter 'in/kernel': add one that names its owner, or FREE if it has none

    Args:
      importance: I, one array in [0, 1] per kind, by attribute (`Units`) or key.
      rules: pairs of a pattern for the parameter's path and its owner.

    Returns:
      A stateless gradient transformation. `init` and `update` raise ValueError for a parameter that no rule
      claims, and for importance that does not have the length of the axes it lies along.

    Raises:
      ValueError: a rule is none, or importance lacks a kind that a rule names, or holds something else than
        numbers in [0, 1].
    """
    for pattern, owner in rules:
        _check_rule(pattern, owner)
    for kind in sorted({owner.kind for _, owner in rules if owner is not None}):
        _check_values(kind, _importance_of(kind, importance))

    def init(params: optax.Params) -> optax.EmptyState:
        factors_of(params, importance, rules)
        return optax.EmptyState()

    def update(
        updates: optax.Updates, state: optax.EmptyState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.EmptyState]:
        del params
        factors = factors_of(updates, importance, rules)
        leaves, treedef = jax.tree.flatten(updates)
        scaled = [
            x if factor is None else x * factor for x, factor in zip(leaves, factors, strict=True)
        ]
        return jax.tree.unflatten(treedef, scaled), state

    return optax.GradientTransformation(init, update)


class Overlap(NamedTuple):
    """How much of the gradients fell on what is protected, so far.

    Attributes:
      steps: how many there were, [] int32.
      total: the decayed sum of their overlaps, [].
    """

    steps: jax.Array
    total: jax.Array

    @property
    def strength(self) -> jax.Array:
        """The decayed mean, in [0, 1], []; 0 before the first step."""
        mean = self.total / jnp.maximum(1 - OVERLAP_DECAY**self.steps, TINY)
        return jnp.clip(jnp.where(self.steps > 0, mean, 0.0), 0.0, 1.0)


def adaptive_soft_mask(importance: Any, rules: Rules = OWNERS) -> optax.GradientTransformation:
    """`soft_mask` as strong as the gradients' overlap with what is protected.

    In step t, with the gradient g of the parameters that units own, and I of those units,

        c_t = norm(I g) / norm(g)           the overlap, in [0, 1]
        s_t = mean of c_1 .. c_t, decayed   the strength, its bias corrected
        g'  = (1 - s_t I) g

    Where I is 0 or 1, c is the cosine of the angle between g and its part on protected units. Gradients that
    leave those alone are hardly masked; those that fall on nothing else get the whole mask. As s < 1 nothing
    is closed altogether, even where I = 1.

    arXiv 2604.22407 has an "overlap-aware adaptive strength"; only its abstract was at hand, so the formula
    is ours.

    Args:
      importance: I, as for `soft_mask`.
      rules: who owns what.

    Returns:
      A gradient transformation whose state is an `Overlap`.
    """
    kinds = sorted({owner.kind for _, owner in rules if owner is not None})

    def init(params: optax.Params) -> Overlap:
        soft_mask(importance, rules).init(params)
        return Overlap(jnp.zeros((), jnp.int32), jnp.zeros(()))

    def update(
        updates: optax.Updates, state: Overlap, params: optax.Params | None = None
    ) -> tuple[optax.Updates, Overlap]:
        del params
        factors = factors_of(updates, importance, rules)
        owned = [
            (x, 1 - factor)
            for x, factor in zip(jax.tree.leaves(updates), factors, strict=True)
            if factor is not None
        ]
        protected = optax.tree.norm([x * own for x, own in owned])
        overlap = protected / jnp.maximum(optax.tree.norm([x for x, _ in owned]), TINY)
        total = OVERLAP_DECAY * state.total + (1 - OVERLAP_DECAY) * overlap
        state = Overlap(optax.safe_increment(state.steps), total)
        scaled = {kind: state.strength * _importance_of(kind, importance) for kind in kinds}
        masked, _ = soft_mask(scaled, rules).update(updates, optax.EmptyState())
        return masked, state

    return optax.GradientTransformation(init, update)


def factors_of(params: Any, importance: Any, rules: Rules = OWNERS) -> list[jax.Array | None]:
    """1 - I, shaped to broadcast against every leaf of `params`; None where no unit owns it.

    Raises:
      ValueError: no rule claims a parameter, or the importance of its owner has another length.
    """

    def factor(path: str, leaf: jax.Array, owner: Owner | None) -> jax.Array | None:
        if owner is None:
            return None
        values = jnp.asarray(_importance_of(owner.kind, importance))
        _check_axes(path, leaf.shape, owner, values.shape)
        values = of_rows(values, owner, leaf.shape)
        return along(1 - values, owner, leaf.ndim).astype(leaf.dtype)

    return [
        factor(*each)
        for each in zip(
            parameter_paths(params), jax.tree.leaves(params), owners_of(params, rules), strict=True
        )
    ]


def _importance_of(kind: str, importance: Any) -> Any:
    """The values of a kind, by key or attribute."""
    try:
        return importance[kind] if isinstance(importance, Mapping) else getattr(importance, kind)
    except (KeyError, AttributeError):
        raise ValueError(
            f"a rule names units of the kind {kind!r}, but the importance given has none; add them, or "
            "correct the rule"
        ) from None


def _check_rule(pattern: Any, owner: Any) -> None:
    """Raises ValueError for what is no rule."""
    try:
        re.compile(pattern)
    except (re.error, TypeError) as error:
        raise ValueError(f"the pattern {pattern!r} is no regular expression ({error})") from None
    if owner is not FREE and not (
        isinstance(owner, Owner)
        and isinstance(owner.axes, tuple)
        and all(isinstance(axis, int) for axis in owner.axes)
    ):
        raise ValueError(
            f"the owner of {pattern!r} is {owner!r}; give Owner(kind, axes) with a tuple of axes, or FREE"
        )


def _check_values(kind: str, values: Any) -> None:
    """Raises ValueError for importance that is not in [0, 1]; what is traced has no values yet."""
    if isinstance(values, jax.core.Tracer):
        return
    try:
        array = np.asarray(values)
    except ValueError:  # Rows of several lengths.
        array = np.asarray(None)
    if not any(
        jnp.issubdtype(array.dtype, each) for each in (jnp.floating, jnp.integer, jnp.bool_)
    ):
        raise ValueError(
            f"the importance of {kind!r} is no array of numbers; give one in [0, 1] for every unit"
        )
    wrong = ~((array >= 0) & (array <= 1))  # NaN is on neither side.
    if wrong.any():
        raise ValueError(
            f"the importance of {kind!r} holds {array[wrong][0]}; it must be in [0, 1], as 1 - I is "
            "what scales an update"
        )


def _check_axes(path: str, shape: tuple[int, ...], owner: Owner, values: tuple[int, ...]) -> None:
    """Raises ValueError unless the values of an owner have the lengths of the axes that they lie along."""
    rank = len(shape)
    axes = [axis % rank for axis in owner.axes if -rank <= axis < rank]
    if len(axes) < len(owner.axes) or len(set(axes)) < len(axes):
        raise ValueError(
            f"the rule for {path!r} names the axes {owner.axes} of an array of the shape {shape}; "
            "correct them"
        )
    wanted = tuple(shape[axis] for axis in axes)
    lengths = values
    if owner.shared and len(values) == len(wanted):  # As many units to every row.
        lengths = tuple(
            rows if units % rows == 0 else units for units, rows in zip(values, wanted, strict=True)
        )
    if lengths != wanted:
        raise ValueError(
            f"the importance of {owner.kind!r} has the shape {values}, but axes {owner.axes} of {path!r}, "
            f"which it owns, have the shape {wanted}"
        )


def _shares(shape: tuple[int, ...], owner: Owner, importance: Any) -> bool:
    """Whether several units share a row of a parameter."""
    if importance is None or not owner.shared:
        return False
    return tuple(shape[axis] for axis in owner.axes) != _importance_of(owner.kind, importance).shape


def effective_mask(
    masked: Any, unmasked: Any, rules: Rules = OWNERS, importance: Any = None
) -> dict[str, jax.Array]:
    """How much of the movement the mask leaves: norm(masked update) / norm(unmasked update) per kind of unit.

    Rows that several units share, such as keys and values of grouped heads, are a kind of their own,
    `shared_heads`: less of them moves than of what one unit has to itself.

    Args:
      masked: the updates of a step.
      unmasked: what they would have been without the mask.
      rules: who owns what.
      importance: I, which tells how many units there are; None where none share a row.

    Returns:
      A ratio for every kind, [], 1 when the mask does nothing, and 1 when nothing would have moved.
    """
    squares: dict[str, tuple[jax.Array, jax.Array]] = {}
    leaves = zip(
        jax.tree.leaves(masked), jax.tree.leaves(unmasked), owners_of(masked, rules), strict=True
    )
    for after, before, owner in leaves:
        if owner is not None:
            sums = jnp.sum(jnp.square(after)), jnp.sum(jnp.square(before))
            kind = f"shared_{owner.kind}" if _shares(after.shape, owner, importance) else owner.kind
            old = squares.get(kind, (jnp.zeros(()), jnp.zeros(())))
            squares[kind] = old[0] + sums[0], old[1] + sums[1]
    return {
        kind: jnp.where(before > TINY, jnp.sqrt(after / jnp.maximum(before, TINY)), 1.0)
        for kind, (after, before) in squares.items()
    }
