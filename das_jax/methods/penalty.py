"""The quadratic penalty: it pulls parameters to where they were, each by its own weight (Kirkpatrick et
al., PNAS 2017, eq. 3).
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from das_jax.model.language_model import Params

Strength = float | jax.Array
"""lambda, a number or []."""


def quadratic_penalty(params: Params, weights: Any, anchor: Any, strength: Strength) -> jax.Array:
    """strength / 2 * sum over all parameters of weight (theta - anchor)^2, [].

    Args:
      params: theta.
      weights: F of every parameter, shaped like it; None in place of one that does not count. Or one number
        for all.
      anchor: theta*; None likewise.
      strength: lambda.
    """

    def one(weight: Any, before: Any, now: Any) -> Any:
        return None if weight is None else jnp.sum(weight * jnp.square(now - before))

    weights = _of_each(weights, anchor)
    terms = jax.tree.leaves(jax.tree.map(one, weights, anchor, params, is_leaf=_is_none))
    return strength / 2 * sum(terms, start=jnp.zeros(()))


def quadratic_pull(weights: Any, anchor: Any, strength: Strength) -> optax.GradientTransformation:
    """Adds the gradient of `quadratic_penalty` to what comes in: to the gradient before the optimizer, or to
    the update after it, where it pulls to the anchor as decoupled weight decay pulls to 0 (Loshchilov and
    Hutter, ICLR 2019).

    Element by element, so it works on parameters that are split over devices, where the sum would not.

    Args:
      weights: F of every parameter, shaped like it; None in place of one that passes. Or one number for all.
      anchor: theta*; None likewise.
      strength: lambda.

    Returns:
      A stateless gradient transformation that needs the parameters.
    """

    def update(updates: Any, params: Any) -> Any:
        def one(weight: Any, before: Any, now: Any, incoming: Any) -> Any:
            if weight is None or incoming is None:
                return incoming
            return incoming + strength * weight * (now - before)

        each = _of_each(weights, anchor)
        return jax.tree.map(one, each, anchor, params, updates, is_leaf=_is_none)

    return optax.stateless(update)


def _of_each(weights: Any, anchor: Any) -> Any:
    """A weight for every parameter."""
    one_for_all = isinstance(weights, int | float)
    return jax.tree.map(lambda _: weights, anchor) if one_for_all else weights


def _is_none(x: Any) -> bool:
    return x is None
