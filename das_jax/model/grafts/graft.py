"""What a method puts into a model beside the pretrained weights: parameters of its own, at named sites."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from das_jax.model.architecture import Architecture
from das_jax.model.leaves import Leaves

Params = dict[str, Any]


@dataclass(frozen=True)
class Graft:
    """What every graft can do; a subclass is a frozen dataclass that overrides what it does otherwise.

    A graft holds settings and no parameters: those are `params["graft"]`, a tree whose arrays are stacked
    along the first axis. It acts in one of three ways.

    *Inside the layers*: the parameters are [L, ...] and a layer gets its own part, without that axis, at

        query, key, value, attention_output, intermediate, output    after a projection: `input` is what the
            projection read and `output` what it gave, bias included, before gate, activation and dropout;
        context    after attention itself: `input` is what its projections read and `output` the heads'
            context, before gate and output projection;
        attention, feed_forward    before a residual sum: `input` is what the sub-layer read, which is what
            its output is going to be added to, and `output` that output, after dropout.

    *Between the layers*, if `every` is a number: the parameters are [L / every, ...], and `block` comes after
    every so many layers.

    *Before the embeddings*, if `prefix` is a number above 0: `before` gives so many vectors, which stand in
    front of those of the words. They get the first positions, token type 0 and the embeddings' LayerNorm, and
    are attended to; the encoder gives the hidden states of the text alone.
    """

    @property
    def prefix(self) -> int:
        """How many vectors stand before a text."""
        return 0

    @property
    def every(self) -> int | None:
        """None, or after how many layers a block stands."""
        return None

    def check(self, architecture: Architecture) -> None:
        """Raises UserError if a model of this architecture cannot take the graft."""

    def init(self, architecture: Architecture, key: jax.Array, base: Params) -> Params:
        """The parameters at the start.

        Args:
          architecture: of the model that is grafted.
          key: for what is random.
          base: the model's parameters, for what is copied.
        """
        raise NotImplementedError

    def at(self, site: str, params: Params, input: jax.Array, output: jax.Array) -> jax.Array:
        """What a layer goes on with at a site in place of `output`, of the same shape and type.

        Args:
          site: one of those above; a graft returns `output` at those it does not know.
          params: this layer's part, matrices in the type of the activations, all else float32.
          input: [B, T, D], [B, T, H, K] before the attention's output projection, [B, T, F] before the
            feed-forward one.
          output: [B, T, H, K] at query, key, value and context, [B, T, F] at intermediate, else [B, T, D].
        """
        return output

    def before_sum(
        self,
        site: str,
        params: Params,
        input: jax.Array,
        output: jax.Array,
        normalise: Callable[[jax.Array], jax.Array],
    ) -> jax.Array:
        """`at` before a residual sum, for a graft that reads through the LayerNorm of that sum.

        Args:
          site: attention or feed_forward.
          params: this layer's part.
          input: [B, T, D].
          output: [B, T, D].
          normalise: the layer's own LayerNorm, as it is trained or frozen.
        """
        return self.at(site, params, input, output)

    def block(
        self,
        layer: Callable[[Params, jax.Array], jax.Array],
        params: Params,
        hidden_BxTxD: jax.Array,
    ) -> jax.Array:
        """The hidden state behind a block.

        Args:
          layer: an encoder layer as a function of its parameters (those of `layers/`, one layer's) and of
            the hidden state.
          params: this block's part.
          hidden_BxTxD: what the layer below gave.
        """
        raise NotImplementedError

    def before(self, params: Params) -> jax.Array:
        """The vectors before a text, [P, D]; matrices of `params` are in the type of the activations."""
        raise NotImplementedError

    def merged(self, params: Params) -> Params | None:
        """Plain parameters, without `graft`, of a model with the same function; None if there is none."""
        return None

    def exported(self, params: Params) -> tuple["Graft", Params]:
        """Graft and parameters in the form in which they are written beside a base, of the same function."""
        return self, params

    def leaves(self) -> Leaves:
        """Every parameter of the graft, `graft/...`, for the table; blocks count along N."""
        raise NotImplementedError


def without_graft(params: Params) -> Params:
    """The model's own parameters."""
    return {name: part for name, part in params.items() if name != "graft"}
