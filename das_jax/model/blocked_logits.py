"""Logits that are never all there at once: those of a few thousand tokens would fill a device's memory.

What is read off the logits, a loss, a divergence, the best word, is computed of a block of tokens at a time.
Where the weights of the tokens in a sum are known, gradients are formed along with it, block by block; else
the logits are computed once more. A table's gradient is added up over the blocks in float32, and no device
asks another for anything.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from das_jax.model.activations import soft_cap
from das_jax.model.dense import product
from das_jax.precision import at_least_float32

BLOCK = 1024
"""Tokens. The table's gradient is read and written once a block: on a TPU v5e that takes longer, with blocks
of 512, than the product that is added, and with blocks of 256 it would double the time of the whole loss.
"""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Unembedding:
    """The last layer of a language model: from hidden states to logits.

    Attributes:
      table_VxD: a row for each word; the word embedding where it is tied.
      bias_V: of the words; None for none.
      dtype: of the product's factors; it is summed in float32 at least.
      cap: c in c tanh(logit / c), Gemma's `final_logit_softcapping`; None for none.
      block: the most tokens whose logits, float32, are there at a time.
    """

    table_VxD: jax.Array
    bias_V: jax.Array | None = None
    dtype: Any = field(default=jnp.float32, metadata={"static": True})
    cap: float | None = field(default=None, metadata={"static": True})
    block: int = field(default=BLOCK, metadata={"static": True})

    def __call__(self, hidden_BxTxD: jax.Array) -> jax.Array:
        """The logits of all these tokens at once, [B, T, V], float32 at least; of tokens with any axes."""
        logits_BxTxV = product(
            hidden_BxTxD.astype(self.dtype),
            self.table_VxD.T.astype(self.dtype),
            dtype=jnp.promote_types(self.dtype, jnp.float32),
        )
        if self.bias_V is not None:
            bias_V = self.bias_V.astype(logits_BxTxV.dtype)
            logits_BxTxV = logits_BxTxV + bias_V.reshape((1,) * (logits_BxTxV.ndim - 1) + (-1,))
        return soft_cap(logits_BxTxV, self.cap)


AT_ONCE = 2**28
"""Logits, 1 GiB in float32: as many may be there at once."""


class BlockedLogits(NamedTuple):
    """What the logits of some tokens are made of.

    Attributes:
      unembedding: the layer.
      hidden_BxTxD: what it reads; of tokens with any axes.
      whole: the logits themselves, [B, T, V], where they are few.
    """

    unembedding: Unembedding
    hidden_BxTxD: jax.Array
    whole: jax.Array | None = None

    @classmethod
    def of(cls, unembedding: Unembedding, hidden_BxTxD: jax.Array) -> "BlockedLogits":
        """With the logits themselves, if these are few."""
        vocabulary, width = unembedding.table_VxD.shape
        few = hidden_BxTxD.size // width * vocabulary <= AT_ONCE
        return cls(unembedding, hidden_BxTxD, unembedding(hidden_BxTxD) if few else None)


OfLogits = Callable[..., Any]
"""(logits_CxV of one model or more, data_C) -> a number for each token, [C], of its own rows alone."""


def per_token(
    of_logits: OfLogits, logits: Iterable[BlockedLogits], *data_BxT: jax.Array
) -> jax.Array:
    """`of_logits` of every token, [B, T].

    Its gradient for hidden states alone is formed along with it; one for a table, too, needs the logits once
    more. First derivatives only, and backward.

    Args:
      of_logits: what is wanted.
      logits: of each model whose logits it takes, for the same tokens.
      data_BxT: what else it takes, [B, T, ...].
    """
    logits = tuple(logits)
    whole = [each.whole for each in logits if each.whole is not None]
    if len(whole) == len(logits):
        return of_logits(*whole, *data_BxT)
    rows, shape = _flat(logits, data_BxT)
    return _values(of_logits, *rows).reshape(shape)


def weighted_sum(
    of_logits: OfLogits,
    logits: Iterable[BlockedLogits],
    weights_BxT: jax.Array,
    *data_BxT: jax.Array,
) -> tuple[jax.Array, Any]:
    """The sum over tokens of weight times the first of what `of_logits` gives, [], and the others, [B, T].

    Gradients are formed along with the sum, without a further product; the others have none. First
    derivatives only, and backward.

    Args:
      of_logits: gives what is summed, and others.
      logits: of each model whose logits it takes, for the same tokens.
      weights_BxT: of the tokens.
      data_BxT: what else `of_logits` takes, [B, T, ...].
    """
    (tables, hidden, (weights_N, *data)), shape = _flat(logits, (weights_BxT, *data_BxT))
    total, others = _sum(of_logits, tables, hidden, tuple(data), weights_N)
    return total, jax.tree.map(lambda x: jax.lax.stop_gradient(x).reshape(shape), others)


def best_words(logits: BlockedLogits) -> jax.Array:
    """The word with the largest logit, of equal ones the first, int32, [B, T]; -1 where a logit is not
    finite.
    """

    def best(logits_CxV: jax.Array) -> jax.Array:
        finite_C = jnp.isfinite(logits_CxV).all(axis=-1)
        return jnp.where(finite_C, jnp.argmax(logits_CxV, axis=-1).astype(jnp.int32), -1)

    return per_token(best, [jax.lax.stop_gradient(logits)])


Tables = tuple[Unembedding, ...]
Rows = tuple[jax.Array, ...]


def _flat(
    logits: Iterable[BlockedLogits], data: Rows
) -> tuple[tuple[Tables, Rows, Rows], tuple[int, ...]]:
    """The tables, and of all else a row for each token; and the shape of the tokens.

    Where an array is a device's own, all become so: the gradient of a table that is the same everywhere would
    be summed over the devices once a block.
    """
    tables, hidden = zip(*((each.unembedding, each.hidden_BxTxD) for each in logits), strict=True)
    shape = hidden[0].shape[:-1]
    rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[len(shape) :]), (hidden, data))
    arrays = tables, *rows
    axes = frozenset[Any]().union(*map(_own_over, jax.tree.leaves(arrays)))

    def own(x: jax.Array) -> jax.Array:
        missing = axes - _own_over(x)
        return jax.lax.pcast(x, tuple(sorted(missing)), to="varying") if missing else x

    return jax.tree.map(own, arrays), shape


def _own_over(x: jax.Array) -> frozenset[Any]:
    """The axes of the mesh along which every device has an array of its own."""
    return jax.typeof(x).manual_axis_type.varying


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _values(of_logits: OfLogits, tables: Tables, hidden: Rows, data: Rows) -> Any:
    narrow = _narrow(tables)

    def of_block(nothing: None, rows: tuple[Rows, Rows]) -> tuple[None, Any]:
        hidden, data = rows
        return nothing, of_logits(*map(Unembedding.__call__, narrow, hidden), *data)

    return _by_block(of_block, None, (hidden, data), tables)[1]


def _values_forward(of_logits: OfLogits, *arguments: Any) -> tuple[jax.Array, Any]:
    wanted, (tables, hidden, data) = _arguments(arguments)
    if jax.tree.leaves(wanted):
        return _values(of_logits, tables, hidden, data), (None, (wanted, tables, hidden, data))
    # Of a token's row, all gradients are multiples of one.
    ones_N = jnp.ones_like(hidden[0][:, 0])
    values_N, _, _, to_hidden = _gradients(_alone(of_logits), wanted, tables, hidden, data, ones_N)
    return values_N, (to_hidden, None)


def _values_backward(of_logits: OfLogits, kept: Any, cotangent_N: jax.Array) -> Any:
    to_hidden, arguments = kept
    if arguments is None:
        return None, _times(cotangent_N[:, None], to_hidden), None
    wanted, tables, hidden, data = arguments
    _, _, to_tables, to_hidden = _gradients(
        _alone(of_logits), wanted, tables, hidden, data, cotangent_N
    )
    return to_tables, to_hidden, None


_values.defvjp(_values_forward, _values_backward, symbolic_zeros=True)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sum(
    of_logits: OfLogits, tables: Tables, hidden: Rows, data: Rows, weights_N: jax.Array
) -> tuple[jax.Array, Any]:
    values_N, others = _values(of_logits, tables, hidden, data)
    return jnp.sum(weights_N * values_N), others


def _sum_forward(of_logits: OfLogits, *arguments: Any) -> tuple[Any, Any]:
    wanted, (tables, hidden, data, weights_N) = _arguments(arguments)
    values_N, others, *to_each = _gradients(of_logits, wanted, tables, hidden, data, weights_N)
    return (jnp.sum(weights_N * values_N), others), (*to_each, values_N)


def _sum_backward(of_logits: OfLogits, kept: Any, cotangents: Any) -> Any:
    to_tables, to_hidden, to_weights = _times(cotangents[0], kept)
    return to_tables, to_hidden, None, to_weights


_sum.defvjp(_sum_forward, _sum_backward, symbolic_zeros=True)


def _arguments(arguments: Any) -> tuple[Tables, Any]:
    """Of the tables the arrays whose gradients are wanted, None in the place of others; and the arguments of
    the function.
    """
    wanted = jax.tree.map(lambda x: x.value if x.perturbed else None, arguments[0])
    return wanted, jax.tree.map(lambda x: x.value, arguments)


def _alone(of_logits: OfLogits) -> OfLogits:
    """Gives no others."""
    return lambda *arguments: (of_logits(*arguments), None)


def _gradients(
    of_logits: OfLogits,
    wanted: Tables,
    tables: Tables,
    hidden: Rows,
    data: Rows,
    weights_N: jax.Array,
) -> tuple[jax.Array, Any, Tables, Rows]:
    """What `of_logits` gives, and gradients of the weighted sum of its first.

    Args:
      of_logits: gives what is summed, and others.
      wanted: of the tables, see `_arguments`.
      tables: of each model.
      hidden: of each model, [N, D].
      data: what else `of_logits` takes, [N, ...].
      weights_N: of the tokens.
    """
    narrow = _narrow(tables)
    own = _where(wanted, lambda _, x: x, lambda _: None, narrow)

    def of_block(sums: Tables, rows: Any) -> tuple[Tables, Any]:
        hidden, data, weights_C = rows

        def values(own: Tables, hidden: Rows) -> Any:
            merged = _where(own, lambda x, _: x, lambda x: x, narrow)
            return of_logits(*map(Unembedding.__call__, merged, hidden), *data)

        value_C, pull, others = jax.vjp(values, own, hidden, has_aux=True)
        to_own, to_hidden = pull(weights_C.astype(value_C.dtype))
        sums = jax.tree.map(lambda total, x: total + x.astype(total.dtype), sums, to_own)
        return sums, (value_C, others, to_hidden)

    zeros = jax.tree.map(lambda x: jnp.zeros_like(at_least_float32(x)), own)
    rows = hidden, data, weights_N
    sums, (values_N, others, to_hidden) = _by_block(of_block, zeros, rows, tables)
    to_tables = jax.tree.map(lambda total, x: total.astype(x.dtype), sums, wanted)
    return values_N, others, to_tables, to_hidden


def _where(tree: Any, there: Callable[..., Any], missing: Callable[[Any], Any], other: Any) -> Any:
    """`there(x, y)` of the arrays of two trees; where the first has none, `missing(y)`."""
    return jax.tree.map(
        lambda x, y: missing(y) if x is None else there(x, y),
        tree,
        other,
        is_leaf=lambda x: x is None,
    )


def _times(factor: jax.Array, tree: Any) -> Any:
    return jax.tree.map(lambda x: (factor * x).astype(x.dtype), tree)


def _narrow(tables: Tables) -> Tables:
    """Tables in the type of the product: cast before the loop, not in it."""
    return tuple(replace(each, table_VxD=each.table_VxD.astype(each.dtype)) for each in tables)


def _by_block(function: Any, carry: Any, rows: Any, tables: Tables) -> tuple[Any, Any]:
    """`function(carry, rows)` of one block after the other, as `jax.lax.scan`; of a single one without loop.

    The blocks are equally large; the last one is filled up with zeros.
    """
    count = len(jax.tree.leaves(rows)[0])
    blocks = -(-count // min(each.block for each in tables))
    if blocks <= 1:
        return function(carry, rows)
    size = -(-count // blocks)

    def split(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, ((0, blocks * size - count), *[(0, 0)] * (x.ndim - 1)))
        return x.reshape(blocks, size, *x.shape[1:])

    carry, values = jax.lax.scan(function, carry, jax.tree.map(split, rows))
    return carry, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], values)
