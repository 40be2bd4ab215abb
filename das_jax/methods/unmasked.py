"""What an optimizer would have done without a mask on its gradients."""

import re
from typing import Any

import jax
import jax.numpy as jnp

from das_jax.methods.contract import UpdateTrace
from das_jax.methods.soft_mask import factors_of
from das_jax.model.language_model import Params
from das_jax.model.leaves import OWNERS
from das_jax.model.units import Rules, parameter_paths


def unmasked_update(
    trace: UpdateTrace, importance: Any, of_second: bool = True, rules: Rules = OWNERS
) -> Params:
    """The update that the optimizer would have made without a soft mask on its gradients.

    The mask is constant in a domain and the optimizer's state starts afresh with it, so first moments and
    momenta are the unmasked ones times 1 - I; second moments, if they knew of the mask, times its square.
    Dividing gives those back: no second optimizer is kept. Where 1 - I is zero they are lost; there the
    update is taken to be the masked one, so those units count in neither norm.

    Args:
      trace: of the step.
      importance: I, as for `soft_mask`.
      of_second: whether the second moment knows of masked gradients, too.
      rules: who owns what.
    """
    factors = factors_of(trace.params, importance, rules)
    paths, treedef = parameter_paths(trace.params), jax.tree.structure(trace.params)
    of_path = dict(zip(paths, factors, strict=True))
    powers = {"mu": 1, "nu": 2 if of_second else 0}

    def divided(path: str, x: jax.Array) -> jax.Array:
        """Of the optimizer's state, in which optax calls moments `mu` and `nu`, and arrays as in `params`."""
        found = re.fullmatch(r"(?:[^/]+/)*?(mu|nu)/(.+)", path)
        factor = None if found is None else of_path[found[2]]
        if found is None or factor is None:
            return x
        return jnp.where(factor > 0, x / jnp.where(factor > 0, factor, 1) ** powers[found[1]], 0)

    state = trace.direction_state
    arrays = map(divided, parameter_paths(state), jax.tree.leaves(state))
    unmasked_state = jax.tree.unflatten(jax.tree.structure(state), [*arrays])
    unmasked, _ = trace.direction.update(trace.gradients, unmasked_state, trace.params)
    pairs = zip(jax.tree.leaves(unmasked), jax.tree.leaves(trace.masked), factors, strict=True)
    return jax.tree.unflatten(
        treedef, [u if f is None else jnp.where(f > 0, u, m) for u, m, f in pairs]
    )
