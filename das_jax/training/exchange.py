"""What devices send each other once a step, inside `shard_map`: split parameters and sums of gradients.

With `mesh.gather: layer` the layers' parameters are put together one layer at a time, where a pass comes to
them, and once more in its backward pass, which sends every layer's gradient on as soon as it has it (FSDP;
Zhao et al., VLDB 2023). All others are put together before the loss. With `mesh.parameters` all that happens
in groups of devices, and the groups add up what each of them has summed, once a step.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax.sharding import PartitionSpec

from das_jax.methods.contract import Split
from das_jax.methods.net import Net, Parts
from das_jax.model.language_model import LanguageModel, Params
from das_jax.model.leaves import LEAVES, Leaf, Leaves, claimed
from das_jax.objectives.collectives import per_shard
from das_jax.training.sharding import Sharding

LAYERS = "layers"
"""The parameters that the loop over layers takes one by one, [L, ...]."""


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
    return _each(lambda x, spec, leaf: _whole(x, spec, leaf, sharding), params, specs, leaves)


def whole_but_layers(params: Params, specs: Any, sharding: Sharding) -> Params:
    """The same, but of the layers' parameters this device's part, where it has one of each layer."""
    return _each(
        lambda x, spec, leaf: (
            _own(x, spec, sharding)
            if _by_layer(spec, leaf, sharding)
            else _whole(x, spec, leaf, sharding)
        ),
        params,
        specs,
    )


def net_of_parts(model: LanguageModel, params: Params, specs: Any, sharding: Sharding) -> Net:
    """A net whose loop over layers puts their parameters together one by one.

    A gradient with respect to this device's part is that part of the sum over the devices of its group.

    Args:
      model: the model.
      params: as `whole_but_layers` gives them.
      specs: how the parameters are split.
      sharding: matrices travel in the type that it says.
    """
    if not any(
        jax.tree.leaves(_each(lambda _, spec, leaf: _by_layer(spec, leaf, sharding), params, specs))
    ):
        return Net(model, params)
    specs = {LAYERS: specs[LAYERS]}

    def put_together(layers: Params, stacked: bool) -> Params:
        def one(x: jax.Array, spec: PartitionSpec, leaf: Leaf) -> jax.Array:
            if not _by_layer(spec, leaf, sharding):
                return x
            return _gathered(x, spec if stacked else PartitionSpec(*spec[1:]), leaf, sharding)

        return _each(one, {LAYERS: layers}, specs)[LAYERS]

    whole = put_together(params[LAYERS], stacked=True)
    gather = partial(put_together, stacked=False)
    return Net(model, {**params, LAYERS: whole}, parts=Parts(whole, params[LAYERS], gather))


def _each(
    function: Callable[[jax.Array, PartitionSpec, Leaf], Any],
    params: Params,
    specs: Any,
    leaves: Leaves = LEAVES,
) -> Any:
    arrays, treedef = jax.tree.flatten(params)
    each = zip(arrays, jax.tree.leaves(specs), claimed(params, leaves), strict=True)
    return jax.tree.unflatten(treedef, [function(*one) for one in each])


def _by_layer(spec: PartitionSpec, leaf: Leaf, sharding: Sharding) -> bool:
    """Whether it is put together layer by layer: every device must have a part of each layer's own."""
    return sharding.gather == "layer" and len(spec) > 1 and leaf.path.startswith(LAYERS)


def _whole(x: jax.Array, spec: PartitionSpec, leaf: Leaf, sharding: Sharding) -> jax.Array:
    own = _own(x, spec, sharding)
    return _gathered(own, spec, leaf, sharding) if spec else own


def _own(x: jax.Array, spec: PartitionSpec, sharding: Sharding) -> jax.Array:
    """An array, or this device's part of one, as its own: nobody adds up its gradient before we do."""
    return per_shard(x, sharding.copies if spec else sharding.batch)


def _gathered(x: jax.Array, spec: PartitionSpec, leaf: Leaf, sharding: Sharding) -> jax.Array:
    sent = x.astype(sharding.exchange) if leaf.matrix and sharding.exchange is not None else x
    axis = len(spec) - 1
    return jax.lax.all_gather(sent, sharding.parts, axis=axis, tiled=True).astype(x.dtype)


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


def summed_but_layers(
    gradients: Params, specs: Any, params_specs: Any, sharding: Sharding
) -> Params:
    """The same, where the gradients of parts, which are a group's sums, are that already.

    Args:
      gradients: with respect to the parameters that `whole_but_layers` gives.
      specs: how the sums are split.
      params_specs: how the parameters are split.
      sharding: gradients travel in the type that it says.
    """
    summed = _each(lambda _, spec, leaf: _by_layer(spec, leaf, sharding), gradients, params_specs)
    return jax.tree.map(
        lambda x, spec, done: _over_groups(x, sharding) if done else _summed(x, spec, sharding),
        gradients,
        specs,
        summed,
    )


def _summed(x: jax.Array, spec: PartitionSpec, sharding: Sharding) -> jax.Array:
    sent = x if sharding.exchange is None else x.astype(sharding.exchange)
    if not spec:
        return jax.lax.psum(sent, sharding.batch).astype(x.dtype)
    axis = len(spec) - 1
    part = jax.lax.psum_scatter(sent, sharding.parts, scatter_dimension=axis, tiled=True)
    return _over_groups(part.astype(x.dtype), sharding)


def _over_groups(part: jax.Array, sharding: Sharding) -> jax.Array:
    """In its own type: a part is small, and what groups have rounded already is not rounded again."""
    return jax.lax.psum(part, sharding.copies) if sharding.copies else part
