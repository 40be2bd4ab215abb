"""Plain models: what stands in a HuggingFace checkpoint of the family, with the same function as a model
with grafts or gates.
"""

import jax
import jax.numpy as jnp

from das_jax.model.grafts.graft import without_graft
from das_jax.model.language_model import LanguageModel, Params
from das_jax.model.leaves import ENCODER
from das_jax.model.units import HEADS, INTERMEDIATE, Units, along, parameter_paths


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
    return params if gates is None else _with_gates(params, gates, model.architecture.gated)


def _with_gates(params: Params, gates: Units, gated: bool) -> Params:
    """Every gate in the parameters beside it: of a head in the projection that reads it; of a feed-forward
    unit, whose gate comes before the activation, in the one that writes it; but where two projections are
    multiplied, one of them activated, in the one that reads the product.
    """
    read = {HEADS.name, *([INTERMEDIATE.name] if gated else [])}
    leaves = {leaf.path: leaf for leaf in ENCODER}
    found = []
    for path, x in zip(parameter_paths(params), jax.tree.leaves(params), strict=True):
        sides = leaves[path].sides if path in leaves else None
        if sides is not None:
            if sides.input is not None and sides.input.kind in read:
                x = x * along(jnp.asarray(getattr(gates, sides.input.kind)), sides.input, x.ndim)
            if sides.output is not None and sides.output.kind not in read:
                x = x * along(jnp.asarray(getattr(gates, sides.output.kind)), sides.output, x.ndim)
        found.append(x)
    return jax.tree.unflatten(jax.tree.structure(params), found)
