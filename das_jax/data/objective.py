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
from das_jax.data.settings import ObjectiveName

UNITS: Mapping[ObjectiveName, str] = {
    "masked": "masked token",
    "causal": "token",
    "supervised": "response token",
}
"""What a loss is the mean over: it is in nats per one of these."""


class Drawn(NamedTuple):
    """What a model reads of some texts, and what it is to predict.

    Attributes:
      tokens: [B, T] the ids that it reads.
      mask: [B, T] true at real tokens.
      labels: [B, M] the ids that it is to predict; valid ones also where a prediction does not count.
      weights: [B, M] 1 where a prediction counts, float32.
      positions: [B, M] where the predictions are made; None: at every token, M = T.
      segments: [B, T] the number of a token's document, from 1, and 0 at padding: attention stays within
        equal ones. None: it crosses documents.
      position_ids: [B, T] where in its document a token stands, from 0, and 0 at padding. None: 0 to T - 1.
    """

    tokens: jax.Array
    mask: jax.Array
    labels: jax.Array
    weights: jax.Array
    positions: jax.Array | None = None
    segments: jax.Array | None = None
    position_ids: jax.Array | None = None

    @property
    def clean(self) -> jax.Array:
        """The text as it was, [B, T]."""
        if self.positions is None:
            return self.tokens
        return Masked(self.tokens, self.positions, self.labels, self.weights).clean


class Objective(Protocol):
    """What is drawn of chunks, on the device, fresh at every visit."""

    def draw(self, chunks_BxT: jax.Array, keys_B: jax.Array) -> Drawn:
        """What is read and what is predicted of every chunk.

        Args:
          chunks_BxT: as they lie on disk, roles included.
          keys_B: a random key for each.
        """

    def num_predictions(self, chunks_BxT: jax.Array) -> jax.Array:
        """How many predictions of a chunk count, [B]: the text decides it, not the draw."""

    def most_predictions(self, length: int) -> int:
        """M, the predictions of a chunk of `length` tokens that are computed."""


@dataclass(frozen=True)
class HiddenTokens:
    """Of masked models: tokens are hidden, and predicted where they stood.

    Attributes:
      masking: which ones.
      padding: the id of padding, which means nothing else in these models.
    """

    masking: Masking
    padding: int

    def draw(self, chunks_BxT: jax.Array, keys_B: jax.Array) -> Drawn:
        masked = self.masking.corrupt(chunks_BxT, keys_B)
        mask_BxT = chunks_BxT != self.padding
        return Drawn(masked.tokens, mask_BxT, masked.labels, masked.weights, masked.positions)

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

    def draw(self, chunks_BxT: jax.Array, keys_B: jax.Array) -> Drawn:
        """Draws nothing at random."""
        counts_BxT = self._counts(chunks_BxT)
        tokens_BxT, mask_BxT = ids(chunks_BxT), ~has(chunks_BxT, PADDING)
        drawn = Drawn(
            tokens_BxT,
            mask_BxT,
            labels=jnp.roll(tokens_BxT, -1, axis=1),
            weights=counts_BxT.astype(jnp.float32),
        )
        if not self.apart:
            return drawn
        at_1xT = jnp.arange(chunks_BxT.shape[1])[None]
        opens_BxT = has(chunks_BxT, OPENS) | (at_1xT == 0)
        number_BxT = jnp.cumsum(opens_BxT, axis=1, dtype=jnp.int32)
        start_BxT = jax.lax.cummax(jnp.where(opens_BxT, at_1xT, 0), axis=1)
        return drawn._replace(
            segments=jnp.where(mask_BxT, number_BxT, 0),
            position_ids=jnp.where(mask_BxT, at_1xT - start_BxT, 0),
        )

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
