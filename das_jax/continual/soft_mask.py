"""The soft mask: an optax transformation that protects important units (Ke et al., ICLR 2023, eq. 7)."""

from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import optax
from pydantic import Field

from das_jax.model.units import FREE as FREE
from das_jax.model.units import OWNERS, Owner, Rules, along, owners_of
from das_jax.settings import settings

TINY = 1e-30


@settings
class SoftMaskSettings:
    apply_to: Literal["gradient", "update"] = "update"
    """Scale the gradient before Adam (the paper) or the finished update, weight decay included."""
    floor: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The least mean of 1 - I over the units of a layer and kind; 0 switches it off."""


def soft_mask(importance: Any, rules: Rules = OWNERS) -> optax.GradientTransformation:
    """Scales what comes in by 1 - I of the unit that owns each parameter; parameters without an owner pass.

    Before the optimizer it scales the gradient, as the paper writes it; but Adam divides by the
    gradient's own scale and nearly undoes it. After the optimizer, weight decay included, it scales
    the movement itself.

    It needs nothing else of das_jax. Importance is any object or dict that holds one array per kind of
    unit, and a table of rules says which axes of a parameter those arrays lie along:

    >>> import jax.numpy as jnp
    >>> import optax
    >>> from das_jax.continual.soft_mask import FREE, Owner, soft_mask
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

    Args:
      importance: I, one array in [0, 1] per kind, by attribute (`Units`) or key.
      rules: pairs of a pattern for the parameter's path and its owner; the first match decides.

    Returns:
      A stateless gradient transformation; `init` raises ValueError for a parameter that no rule claims.
    """

    def init(params: optax.Params) -> optax.EmptyState:
        owners_of(params, rules)
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


def factors_of(params: Any, importance: Any, rules: Rules = OWNERS) -> list[jax.Array | None]:
    """1 - I, shaped to broadcast against every leaf of `params`; None where no unit owns it."""

    def factor(leaf: jax.Array, owner: Owner | None) -> jax.Array | None:
        if owner is None:
            return None
        values = (
            importance[owner.kind]
            if isinstance(importance, dict)
            else getattr(importance, owner.kind)
        )
        return along(1 - values, owner, leaf.ndim).astype(leaf.dtype)

    return [
        factor(*pair)
        for pair in zip(jax.tree.leaves(params), owners_of(params, rules), strict=True)
    ]


def effective_mask(masked: Any, unmasked: Any, rules: Rules = OWNERS) -> dict[str, jax.Array]:
    """How much of the movement the mask leaves: norm(masked update) / norm(unmasked update) per kind of unit.

    Args:
      masked: the updates of a step.
      unmasked: what they would have been without the mask.
      rules: who owns what.

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
            old = squares.get(owner.kind, (jnp.zeros(()), jnp.zeros(())))
            squares[owner.kind] = old[0] + sums[0], old[1] + sums[1]
    return {
        kind: jnp.where(before > TINY, jnp.sqrt(after / jnp.maximum(before, TINY)), 1.0)
        for kind, (after, before) in squares.items()
    }
