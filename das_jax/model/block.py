"""One layer of every architecture: attention and feed-forward, with gates and a graft as arguments.

What an architecture leaves out costs nothing: a BERT's layer compiles to what it would be alone.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from das_jax.model.activations import ACTIVATIONS
from das_jax.model.architecture import Architecture
from das_jax.model.attention import ATTENTION, KeyValues, Rule, attention_with_past
from das_jax.model.dense import dense
from das_jax.model.dropout import dropout
from das_jax.model.grafts.graft import Graft, Params
from das_jax.model.norms import identity, norm
from das_jax.model.rotary import Turns, turned
from das_jax.model.units import Units
from das_jax.precision import at_least_float32


class Seeds(NamedTuple):
    """Dropout seeds of a layer, one of two words per example each, [B, 2].

    No model drops both before and behind the second feed-forward projection: they share a seed.
    """

    attention: jax.Array | None
    attention_output: jax.Array | None
    feed_forward: jax.Array | None


class Places(NamedTuple):
    """What is so of the tokens, in all layers.

    Attributes:
      mask_BxT: true at real tokens.
      segments_BxT: the number of every token's document, none of which reads another; None if all are one.
      turns: of the rotary positions, [R, B, T, K / 2]; None if there are none.
      positions_BxT: where they go on with a text; None if they begin one.
    """

    mask_BxT: jax.Array
    segments_BxT: jax.Array | None = None
    turns: Turns | None = None
    positions_BxT: jax.Array | None = None


class Form(NamedTuple):
    """In what the layers of a model differ, each [L]; None where they do not.

    Attributes:
      rule: which of the model's rules of attention.
      table: which of its rotary tables.
      first_norm: whether there is a norm at attention's input.
    """

    rule: jax.Array | None = None
    table: jax.Array | None = None
    first_norm: jax.Array | None = None


SITES = len(Seeds._fields)
NO_SEEDS = Seeds(*[None] * SITES)


def gated(x_BxTxUxX: jax.Array, gate_U: jax.Array | None) -> jax.Array:
    """Multiplies units, axis 2 of `x`, by their gates: [U], or [B, U] for gates of every example's own.

    In float32, so that a gate's gradient, a sum over tokens, is accumulated in float32.
    """
    if gate_U is None:
        return x_BxTxUxX
    gate_BxU = gate_U if gate_U.ndim == 2 else gate_U[None]
    shape = (gate_BxU.shape[0], 1, gate_BxU.shape[1]) + (1,) * (x_BxTxUxX.ndim - 3)
    return (at_least_float32(x_BxTxUxX) * gate_BxU.reshape(shape)).astype(x_BxTxUxX.dtype)


def grafted(
    graft: Graft | None,
    params: Params | None,
    site: str,
    input: jax.Array,
    output: jax.Array,
    normalise: Callable[[jax.Array], jax.Array] | None = None,
) -> jax.Array:
    """What a graft makes of an output at a site; that output where there is no graft."""
    if graft is None or params is None:
        return output
    if normalise is None:
        return graft.at(site, params, input, output)
    return graft.before_sum(site, params, input, output, normalise)


def rate_of(architecture: Architecture, own: float | None) -> float:
    """A dropout rate of its own, or that of all hidden states."""
    return architecture.hidden_dropout if own is None else own


class Attention(nn.Module):
    """Self-attention with its output projection, norms and residual."""

    architecture: Architecture
    dtype: jnp.dtype
    attention: str
    graft: Graft | None = None

    @nn.compact
    def __call__(
        self,
        hidden_BxTxD: jax.Array,
        places: Places,
        seeds: Seeds,
        gate_H: jax.Array | None,
        graft: Params | None = None,
        form: Form | None = None,
        past: KeyValues | None = None,
    ) -> tuple[jax.Array, KeyValues | None]:
        arch = self.architecture
        at = partial(grafted, self.graft, graft)
        form = form or Form()
        input_BxTxD = at_input(arch, self.dtype, hidden_BxTxD)
        if form.first_norm is not None:
            input_BxTxD = jnp.where(form.first_norm, input_BxTxD, hidden_BxTxD)
        table = None
        if places.turns is not None:
            number = 0 if form.table is None else form.table
            table = jax.tree.map(lambda part: part[number], places.turns)

        def heads(name: str, count: int) -> jax.Array:
            shape = (count, arch.head_size)
            project = dense(arch, shape, self.dtype, name, use_bias=arch.qkv_bias)
            return checkpoint_name(at(name, input_BxTxD, project(input_BxTxD)), name)

        def placed(name: str, x_BxTxHxK: jax.Array) -> jax.Array:
            if arch.query_key_norm:
                x_BxTxHxK = norm(arch, self.dtype, f"{name}_norm")(x_BxTxHxK)
            return x_BxTxHxK if table is None else turned(x_BxTxHxK, table)

        query_BxTxHxK = placed("query", heads("query", arch.num_heads))
        key_BxTxGxK = placed("key", heads("key", arch.kv_heads))
        value_BxTxGxK = heads("value", arch.kv_heads)
        context_BxTxHxK = attend(
            arch,
            ATTENTION[self.attention],
            query_BxTxHxK,
            key_BxTxGxK,
            value_BxTxGxK,
            places,
            seeds.attention,
            form.rule,
            past,
        )
        context_BxTxHxK = at("context", input_BxTxD, context_BxTxHxK)
        project = dense(
            arch,
            arch.hidden_size,
            self.dtype,
            "output",
            axis=(-2, -1),
            use_bias=arch.attention_bias,
        )
        context_BxTxHxK = gated(context_BxTxHxK, gate_H)
        output_BxTxD = at("attention_output", context_BxTxHxK, project(context_BxTxHxK))
        output_BxTxD = checkpoint_name(output_BxTxD, "attention_output")
        rate = rate_of(arch, arch.attention_output_dropout)
        output_BxTxD = dropout(output_BxTxD, rate, seeds.attention_output)
        output_BxTxD = summed(
            arch, self.dtype, partial(at, "attention"), hidden_BxTxD, output_BxTxD
        )
        if past is None:
            return output_BxTxD, None
        return output_BxTxD, KeyValues(key_BxTxGxK.swapaxes(1, 2), value_BxTxGxK.swapaxes(1, 2))


class FeedForward(nn.Module):
    """The feed-forward projections with their norms and residual."""

    architecture: Architecture
    dtype: jnp.dtype
    graft: Graft | None = None

    @nn.compact
    def __call__(
        self,
        hidden_BxTxD: jax.Array,
        seeds: Seeds,
        gate_F: jax.Array | None,
        gate_D: jax.Array | None,
        graft: Params | None = None,
    ) -> jax.Array:
        arch = self.architecture
        at = partial(grafted, self.graft, graft)
        activation = ACTIVATIONS[arch.activation]
        input_BxTxD = at_input(arch, self.dtype, hidden_BxTxD)

        def expanded(name: str) -> jax.Array:
            project = dense(
                arch, arch.intermediate_size, self.dtype, name, use_bias=arch.feed_forward_bias
            )
            return checkpoint_name(at(name, input_BxTxD, project(input_BxTxD)), name)

        if arch.gated:
            after_BxTxF = activation(expanded("gate")) * expanded("intermediate")
            after_BxTxF = gated(after_BxTxF, gate_F)
        else:
            after_BxTxF = activation(gated(expanded("intermediate"), gate_F))
        after_BxTxF = dropout(after_BxTxF, arch.intermediate_dropout, seeds.feed_forward)
        contract = dense(
            arch, arch.hidden_size, self.dtype, "output", use_bias=arch.feed_forward_bias
        )
        output_BxTxD = at("output", after_BxTxF, contract(after_BxTxF))
        output_BxTxD = gated(checkpoint_name(output_BxTxD, "output"), gate_D)
        output_BxTxD = dropout(output_BxTxD, arch.hidden_dropout, seeds.feed_forward)
        return summed(arch, self.dtype, partial(at, "feed_forward"), hidden_BxTxD, output_BxTxD)


def at_input(architecture: Architecture, dtype: jnp.dtype, hidden_BxTxD: jax.Array) -> jax.Array:
    """What a sublayer reads of the hidden state; in a compact method, as the norm has parameters."""
    if architecture.placement == "post":
        return hidden_BxTxD
    return norm(architecture, dtype, "input_norm")(hidden_BxTxD)


def summed(
    architecture: Architecture,
    dtype: jnp.dtype,
    at: Callable[..., jax.Array],
    hidden_BxTxD: jax.Array,
    output_BxTxD: jax.Array,
) -> jax.Array:
    """The hidden state behind a sublayer; in a compact method, as norms have parameters.

    Args:
      architecture: says where norms stand.
      dtype: of the sums.
      at: gives a graft what is added.
      hidden_BxTxD: the hidden state before the sublayer.
      output_BxTxD: what the sublayer made of it.
    """
    if architecture.placement == "around":
        output_BxTxD = norm(architecture, dtype, "output_norm")(output_BxTxD)
    normalise = identity
    if architecture.placement == "post":
        normalise = norm(architecture, dtype, "layer_norm")
    output_BxTxD = at(hidden_BxTxD, output_BxTxD, normalise)
    return normalise(checkpoint_name(hidden_BxTxD + output_BxTxD, "sum"))


def attend(
    architecture: Architecture,
    attention: Callable[..., jax.Array],
    query_BxTxHxK: jax.Array,
    key_BxTxGxK: jax.Array,
    value_BxTxGxK: jax.Array,
    places: Places,
    seed_Bx2: jax.Array | None,
    number: jax.Array | None,
    past: KeyValues | None = None,
) -> jax.Array:
    """The context vectors under the layer's rule, [B, T, H, K].

    Args:
      architecture: has the rules.
      attention: computes it.
      query_BxTxHxK: what each token looks for.
      key_BxTxGxK: what each is found by.
      value_BxTxGxK: what it is read for.
      places: of the tokens.
      seed_Bx2: for dropout on the weights.
      number: of the layer's rule, where there are several; only that one is computed.
      past: of the texts so far; None or without a slot where they begin.
    """
    rules, _ = rules_of(architecture, length_with(past, query_BxTxHxK.shape[1]))

    def under(rule: Rule) -> Callable[..., jax.Array]:
        if past is not None and past.slots:
            assert places.positions_BxT is not None
            return partial(
                attention_with_past, past=past, positions_BxT=places.positions_BxT, rule=rule
            )
        return lambda query, key, value: attention(
            query, key, value, places.mask_BxT, rule, seed_Bx2, places.segments_BxT
        )

    operands = query_BxTxHxK, key_BxTxGxK, value_BxTxGxK
    if number is None:
        return under(rules[0])(*operands)
    return jax.lax.switch(number, [under(rule) for rule in rules], *operands)


def length_with(past: KeyValues | None, length: int) -> int:
    """How long texts are at most with so many tokens more."""
    return length if past is None else past.slots + length


def rules_of(architecture: Architecture, length: int) -> tuple[tuple[Rule, ...], tuple[int, ...]]:
    """The different rules of attention, and by layer the number of its rule.

    Args:
      architecture: the model's.
      length: T; a window that is as long is none.
    """
    arch = architecture
    rate, scale, cap = arch.attention_dropout, arch.score_scale, arch.score_cap
    rules = [
        Rule(rate, arch.causal, reach, scale, cap).within(length)
        for reach in arch.reaches or (None,) * arch.num_layers
    ]
    different = tuple(dict.fromkeys(rules))
    return different, tuple(different.index(rule) for rule in rules)


def form_of(architecture: Architecture, length: int) -> Form | None:
    """In what the layers differ; None if in nothing.

    Args:
      architecture: the model's.
      length: T.
    """
    arch = architecture
    rules, numbers = rules_of(arch, length)
    first = np.arange(arch.num_layers) > 0
    form = Form(
        rule=jnp.asarray(numbers, jnp.int32) if len(rules) > 1 else None,
        table=jnp.asarray(arch.rotary_of_layers, jnp.int32) if len(arch.rotary) > 1 else None,
        first_norm=None if arch.first_norm else jnp.asarray(first),
    )
    return None if form == Form() else form


class Block(nn.Module):
    """A layer, in the form that `nn.scan` wants: (carry, ...) -> (carry, what is kept of the layer).

    That is the tokens' keys and values where there is a past, perhaps without a slot; else nothing.
    """

    architecture: Architecture
    dtype: jnp.dtype
    attention: str
    graft: Graft | None = None

    @nn.compact
    def __call__(
        self,
        hidden_BxTxD: jax.Array,
        places: Places,
        seeds: Seeds,
        gates: Units | None,
        graft: Params | None = None,
        form: Form | None = None,
        past: KeyValues | None = None,
    ) -> tuple[jax.Array, KeyValues | None]:
        arch, dtype = self.architecture, self.dtype
        gate_H, gate_F, gate_D = gates or (None, None, None)
        hidden_BxTxD, own = Attention(arch, dtype, self.attention, self.graft, name="attention")(
            hidden_BxTxD, places, seeds, gate_H, graft, form, past
        )
        hidden_BxTxD = FeedForward(arch, dtype, self.graft, name="feed_forward")(
            hidden_BxTxD, seeds, gate_F, gate_D, graft
        )
        return hidden_BxTxD, own
