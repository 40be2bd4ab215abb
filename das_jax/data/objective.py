"""What a text is learned for: the words that are hidden in it, or always the next token.

An objective stands between a batch and a loss. It is a value: equal ones make the same program.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from das_jax.data.masking import Masked, Masking
from das_jax.data.roles import GIVEN, OPENS, PADDING, has, ids

LM_LOSSES = ("masked_lm", "causal_lm")
"""The names of objectives' losses among a step's metrics."""


class Text(NamedTuple):
    """What a model reads.

    Attributes:
      tokens: [B, T] ids.
      mask: [B, T] true at real tokens.
      segments: [B, T] the number of a token's document, from 1, and 0 at padding: attention stays within
        equal ones. None: it crosses documents.
      position_ids: [B, T] where in its document a token stands, from 0, and 0 at padding. None: 0 to T - 1.
    """

    tokens: jax.Array
    mask: jax.Array
    segments: jax.Array | None = None
    position_ids: jax.Array | None = None

    def rows(self, rows: slice) -> "Text":
        """Some of the examples."""
        return jax.tree.map(lambda x: x[rows], self)


class Drawn(NamedTuple):
    """What a model reads of some texts, and what it is to predict.

    Attributes:
      text: what it reads.
      clean: the text as it was.
      labels: [B, M] the ids that it is to predict; valid ones also where a prediction does not count.
      weights: [B, M] 1 where a prediction counts, float32.
      positions: [B, M] where the predictions are made; None: at every token, M = T.
    """

    text: Text
    clean: Text
    labels: jax.Array
    weights: jax.Array
    positions: jax.Array | None = None

    def at_predictions(self, hidden_BxTxD: jax.Array) -> jax.Array:
        """The hidden states that the predictions are made from, [B, M, D]."""
        if self.positions is None:
            return hidden_BxTxD
        return jnp.take_along_axis(hidden_BxTxD, self.positions[..., None], axis=1)


class Objective(Protocol):
    """What is drawn of chunks, on the device, fresh at every visit."""

    @property
    def loss(self) -> str:
        """The name of its loss among a step's metrics."""

    def text(self, chunks_BxT: jax.Array) -> Text:
        """The chunks as they are, which is all that is read where nothing is to be predicted."""

    def draw(self, chunks_BxT: jax.Array, keys_B: jax.Array) -> Drawn:
        """What is read and what is predicted of every chunk.

        Args:
          chunks_BxT: as they lie on disk, roles included.
          keys_B: a random key for each.
        """

    def stored(self, drawn: Drawn) -> dict[str, jax.Array]:
        """What must be kept beside chunks to draw the same once more."""

    def again(self, chunks_BxT: jax.Array, stored: Mapping[str, jax.Array]) -> Drawn:
        """What was drawn of the chunks when `stored` was."""

    def num_predictions(self, chunks_BxT: jax.Array) -> jax.Array:
        """How many predictions of a chunk count, [B]: the text decides it, not the draw."""

    def most_predictions(self, length: int) -> int:
        """M, the predictions of a chunk of `length` tokens that are computed."""


@dataclass(frozen=True)
class HiddenTokens:
    """Of masked models: tokens are hidden, and predicted where they stood.

    Attributes:
      masking: which ones.
      padding: the id of padding, which means nothing else in these models; None if there is none.
    """

    masking: Masking
    padding: int | None

    @property
    def loss(self) -> str:
        return LM_LOSSES[0]

    def text(self, chunks_BxT: jax.Array) -> Text:
        if self.padding is None:
            return Text(chunks_BxT, jnp.ones_like(chunks_BxT, bool))
        return Text(chunks_BxT, chunks_BxT != self.padding)

    def draw(self, chunks_BxT: jax.Array, keys_B: jax.Array) -> Drawn:
        return self.corrupted(chunks_BxT, self.masking.corrupt(chunks_BxT, keys_B))

    def stored(self, drawn: Drawn) -> dict[str, jax.Array]:
        assert drawn.positions is not None
        return {
            "corrupted": drawn.text.tokens,
            "positions": drawn.positions,
            "labels": drawn.labels,
            "weights": drawn.weights,
        }

    def again(self, chunks_BxT: jax.Array, stored: Mapping[str, jax.Array]) -> Drawn:
        parts = (stored[name] for name in ("corrupted", "positions", "labels", "weights"))
        return self.corrupted(chunks_BxT, Masked(*parts))

    def corrupted(self, chunks_BxT: jax.Array, masked: Masked) -> Drawn:
        """Of a corruption that is there already."""
        clean = self.text(chunks_BxT)
        text = clean._replace(tokens=masked.tokens)
        return Drawn(text, clean, masked.labels, masked.weights, masked.positions)

    def num_predictions(self, chunks_BxT: jax.Array) -> jax.Array:
        return self.masking.num_predictions(chunks_BxT)

    def most_predictions(self, length: int) -> int:
        return self.masking.num_masked(length)


@dataclass(frozen=True)
class NextToken:
    """Of decoders: every token but the last is followed by its label, unless this is padding or only given.

    Which tokens are only given, the chunks say: those that open texts and, of examples, all that is no
    response. So causal and supervised learning are one objective here, one program, and one batch may hold
    both.

    Attributes:
      apart: documents do not see each other: attention stays inside, positions begin anew, and nothing is
        predicted across a boundary. What a chunk begins with begins at position 0.
    """

    apart: bool = False

    @property
    def loss(self) -> str:
        return LM_LOSSES[1]

    def text(self, chunks_BxT: jax.Array) -> Text:
        text = Text(ids(chunks_BxT), ~has(chunks_BxT, PADDING))
        if not self.apart:
            return text
        at_1xT = jnp.arange(chunks_BxT.shape[1])[None]
        opens_BxT = has(chunks_BxT, OPENS) | (at_1xT == 0)
        number_BxT = jnp.cumsum(opens_BxT, axis=1, dtype=jnp.int32)
        start_BxT = jax.lax.cummax(jnp.where(opens_BxT, at_1xT, 0), axis=1)
        return text._replace(
            segments=jnp.where(text.mask, number_BxT, 0),
            position_ids=jnp.where(text.mask, at_1xT - start_BxT, 0),
        )

    def draw(self, chunks_BxT: jax.Array, keys_B: jax.Array) -> Drawn:
        """Draws nothing at random."""
        text, weights_BxT = self.text(chunks_BxT), self._counts(chunks_BxT).astype(jnp.float32)
        return Drawn(text, text, jnp.roll(text.tokens, -1, axis=1), weights_BxT)

    def stored(self, drawn: Drawn) -> dict[str, jax.Array]:
        return {}

    def again(self, chunks_BxT: jax.Array, stored: Mapping[str, jax.Array]) -> Drawn:
        return self.draw(chunks_BxT, jnp.zeros(len(chunks_BxT)))

    def num_predictions(self, chunks_BxT: jax.Array) -> jax.Array:
        return jnp.sum(self._counts(chunks_BxT), axis=1, dtype=jnp.float32)

    def most_predictions(self, length: int) -> int:
        return length

    def _counts(self, chunks_BxT: jax.Array) -> jax.Array:
        """Whether what follows a token is predicted, [B, T]."""
        length = chunks_BxT.shape[1]
        never = GIVEN | PADDING | (OPENS if self.apart else 0)
        follows_1xT = (jnp.arange(length) < length - 1)[None]
        return ~has(jnp.roll(chunks_BxT, -1, axis=1), never) & follows_1xT
