"""Which parameters a stage trains: rules over their paths, and the two parts that they make."""

import jax

from das_jax.model.language_model import Params
from das_jax.model.units import claims

Rules = tuple[tuple[str, bool], ...]
"""(pattern, yes or no): the first pattern that matches a parameter's whole path decides."""

EVERYTHING: Rules = ((".*", True),)


def partition(params: Params, rules: Rules) -> tuple[Params, Params]:
    """The parameters that are trained, and all others; None in the place of those of the other part.

    Raises:
      ValueError: a parameter that no rule claims.
    """
    leaves, treedef = jax.tree.flatten(params)
    trained = claims(params, rules, "no rule of Plan.trains claims the parameter {!r}; add one")
    parts = [
        [x if each == wanted else None for x, each in zip(leaves, trained, strict=True)]
        for wanted in (True, False)
    ]
    return jax.tree.unflatten(treedef, parts[0]), jax.tree.unflatten(treedef, parts[1])


def merged(trained: Params, others: Params) -> Params:
    """All parameters again."""
    return jax.tree.map(
        lambda x, other: other if x is None else x, trained, others, is_leaf=lambda x: x is None
    )
