"""What devices send each other once a step, inside `shard_map`: split parameters and sums of gradients."""

from typing import Any

import jax
from jax.sharding import PartitionSpec

from das_jax.methods.contract import Split
from das_jax.model.leaves import LEAVES, Leaves, matrices_of
from das_jax.model.masked_lm import Params
from das_jax.objectives.collectives import per_shard
from das_jax.training.sharding import Sharding


def whole_params(params: Params, specs: Any, sharding: Sharding, leaves: Leaves = LEAVES) -> Params:
    """Whole parameters, every device's own, so that their gradients are its own rows' alone.

    Args:
      params: this device's part of the parameters.
      specs: how they are split.
      sharding: matrices and embeddings travel in the type that it says.
      leaves: of the parameters: which are matrices.

    Raises:
      ValueError: a parameter that none of `leaves` claims.
    """
    arrays, treedef = jax.tree.flatten(params)
    whole = [
        _whole(x, spec, sharding, cast)
        for x, spec, cast in zip(
            arrays, jax.tree.leaves(specs), matrices_of(params, leaves), strict=True
        )
    ]
    return jax.tree.unflatten(treedef, whole)


def _whole(x: jax.Array, spec: PartitionSpec, sharding: Sharding, cast: bool) -> jax.Array:
    if not spec:
        return per_shard(x, sharding.batch)
    sent = x.astype(sharding.exchange) if cast and sharding.exchange is not None else x
    axis = len(spec) - 1
    return jax.lax.all_gather(sent, sharding.batch, axis=axis, tiled=True).astype(x.dtype)


def whole_memory(memory: Any, specs: Any, sharding: Sharding) -> Any:
    """What a loss sees of a memory: all of it, but of a `Split` part this device's own, unless it says
    `whole`.

    Args:
      memory: as it lives.
      specs: how it is split.
      sharding: matrices and embeddings travel in the type that it says.
    """

    def put_together(part: Any, spec: Any) -> Any:
        if isinstance(part, Split) and part.whole:
            return Split(whole_params(part.tree, spec.tree, sharding), whole=True)
        return part

    return jax.tree.map(put_together, memory, specs, is_leaf=lambda x: isinstance(x, Split))


def summed_gradients(gradients: Params, specs: Any, sharding: Sharding) -> Params:
    """The sums of all devices' gradients; of an array that is split, this device's part.

    Args:
      gradients: of whole parameters, from this device's rows.
      specs: how the sums are split.
      sharding: gradients travel in the type that it says.
    """
    return jax.tree.map(lambda x, spec: _summed(x, spec, sharding), gradients, specs)


def _summed(x: jax.Array, spec: PartitionSpec, sharding: Sharding) -> jax.Array:
    sent = x if sharding.exchange is None else x.astype(sharding.exchange)
    if not spec:
        return jax.lax.psum(sent, sharding.batch).astype(x.dtype)
    axis = len(spec) - 1
    return jax.lax.psum_scatter(sent, sharding.batch, scatter_dimension=axis, tiled=True).astype(
        x.dtype
    )
