"""Plain models: what stands in a HuggingFace checkpoint of the family, with the same function as a model
with grafts or gates.
"""

import jax
import jax.numpy as jnp

from das_jax.model.grafts.graft import without_graft
from das_jax.model.language_model import LanguageModel, Params
from das_jax.model.leaves import ENCODER
from das_jax.model.units import HEADS, Units, along, parameter_paths


def plain_params(model: LanguageModel, params: Params, gates: Units | None = None) -> Params | None:
    """Parameters without `graft` and gates, of the plain model with the same function; None if there is
    none. Exact, but for rounding where something is merged.

    Args:
      model: with its graft, if it has one.
      params: its parameters.
      gates: what multiplies its units, [L, U].
    """
    if model.graft is not None:
        merged = model.graft.merged(params)
        if merged is None:
            return None
        params = merged
    params = without_graft(params)
    return params if gates is None else _with_gates(params, gates)


def _with_gates(params: Params, gates: Units) -> Params:
    """Every gate in the parameters beside it: of a head in the projection that reads it, of a feed-forward
    unit, whose gate comes before the activation, in the one that writes it.
    """
    leaves = {leaf.path: leaf for leaf in ENCODER}
    found = []
    for path, x in zip(parameter_paths(params), jax.tree.leaves(params), strict=True):
        sides = leaves[path].sides if path in leaves else None
        if sides is not None:
            if sides.input is not None and sides.input.kind == HEADS.name:
                x = x * along(jnp.asarray(getattr(gates, HEADS.name)), sides.input, x.ndim)
            if sides.output is not None and sides.output.kind != HEADS.name:
                x = x * along(jnp.asarray(getattr(gates, sides.output.kind)), sides.output, x.ndim)
        found.append(x)
    return jax.tree.unflatten(jax.tree.structure(params), found)
