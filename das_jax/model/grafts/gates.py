"""Gates on the units of a graft, in its matrices: a graft with gates is the same graft with others.

Of a net U f(D z + b) + b' the units are what f gives, `inner`, and what comes out, `output`:

    g_o * (U (g_i * f(D z + b)) + b') = U' f(D z + b) + g_o * b',    U'[i, j] = g_o[i] U[i, j] g_i[j],

exactly, also behind a relu, as a gate is not negative. So a graft need not know of gates, in training or when
it is served, and a gate's gradient comes through products of the size of its matrices, not of the text.
"""

import functools
import re
from collections.abc import Mapping

import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from das_jax.model.architecture import Architecture
from das_jax.model.grafts.graft import Graft, Params
from das_jax.model.leaves import Leaf, Leaves
from das_jax.model.units import Kind, along

SITES = ("attention", "feed_forward")
"""The places of Houlsby's adapters."""


def net_leaves(site: str, path: str = "") -> Leaves:
    """The parameters of a net, `down` and `up`, between its units: `{site}_inner` and `{site}_output`.

    Args:
      site: where in a layer the net stands.
      path: of the net, below that of the site.
    """
    inner, output = Kind(f"{site}_inner", "LR"), Kind(f"{site}_output", "LD")
    net = f"graft/{site}/{path}"
    return (
        Leaf(f"{net}down/kernel", "LD->R", writes=inner),
        Leaf(f"{net}down/bias", "LR", writes=inner),
        Leaf(f"{net}up/kernel", "LR->D", writes=output, reads=inner),
        Leaf(f"{net}up/bias", "LD", writes=output),
    )


@functools.cache
def unit_shapes(
    graft: Graft, leaves: Leaves, architecture: Architecture
) -> dict[str, tuple[int, int]]:
    """The shape [L, U] of every kind of unit, in the order of the table.

    Args:
      graft: what it is whose parameters at the start do not depend on the base.
      leaves: its table.
      architecture: of the model.
    """
    init = functools.partial(graft.init, architecture, base={})
    shapes = flatten_dict({"graft": jax.eval_shape(lambda: init(key=jax.random.key(0)))}, sep="/")
    found = {}
    for leaf in leaves:
        written = leaf.sides.output
        if written is not None:
            layers, units = (shapes[leaf.path].shape[axis] for axis in written.axes)
            found[written.kind] = layers, units
    return found


def folded(params: Params, gates: Mapping[str, jax.Array], leaves: Leaves) -> Params:
    """A graft with gates in it: in what reads a unit or, where nothing does, in what writes it.

    Args:
      params: the graft's, and others beside them, which are left out.
      gates: of every kind of unit, [L, U].
      leaves: the graft's.
    """
    read = {leaf.reads.name for leaf in leaves if leaf.reads is not None}
    found = {}
    for path, x in flatten_dict(params, sep="/").items():
        leaf = next((each for each in leaves if re.fullmatch(each.path, f"graft/{path}")), None)
        if leaf is None:
            continue
        written, fed = leaf.sides
        if fed is not None:
            x = x * along(gates[fed.kind], fed, x.ndim)
        if written is not None and written.kind not in read:
            x = x * along(gates[written.kind], written, x.ndim)
        found[path] = x
    return unflatten_dict(found, sep="/")
