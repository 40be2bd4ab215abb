"""The quadratic penalty: it pulls parameters to where they were, each by its own weight (Kirkpatrick et
al., PNAS 2017, eq. 3).
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from das_jax.model.masked_lm import Params


def quadratic_penalty(params: Params, weights: Any, anchor: Any, strength: float) -> jax.Array:
    """strength / 2 * sum over all parameters of weight (theta - anchor)^2, [].

    Args:
      params: theta.
      weights: F of every parameter, shaped like it; None in place of one that does not count.
      anchor: theta*; None likewise.
      strength: lambda.
    """

    def one(weight: Any, before: Any, now: Any) -> Any:
        return None if weight is None else jnp.sum(weight * jnp.square(now - before))

    terms = jax.tree.leaves(jax.tree.map(one, weights, anchor, params, is_leaf=_is_none))
    return strength / 2 * sum(terms, start=jnp.zeros(()))


def quadratic_pull(weights: Any, anchor: Any, strength: float) -> optax.GradientTransformation:
    """Adds the gradient of `quadratic_penalty` to the gradient that comes in.

    Element by element, so it works on parameters that are split over devices, where the sum would not.

    Args:
      weights: F of every parameter, shaped like it; None in place of one that passes.
      anchor: theta*; None likewise.
      strength: lambda.

    Returns:
      A stateless gradient transformation that needs the parameters.
    """

    def update(updates: Any, params: Any) -> Any:
        def one(weight: Any, before: Any, now: Any, gradient: Any) -> Any:
            return gradient if weight is None else gradient + strength * weight * (now - before)

        return jax.tree.map(one, weights, anchor, params, updates, is_leaf=_is_none)

    return optax.stateless(update)


def _is_none(x: Any) -> bool:
    return x is None
