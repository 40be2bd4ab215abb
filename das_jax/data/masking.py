"""Masked-LM corruption, on the device, fresh at every visit."""

from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from das_jax.data.prefix_places import in_prefix
from das_jax.data.time_prefix import PrefixTokens


class Masked(NamedTuple):
    """Corrupted text and what is to be predicted of it.

    Attributes:
      tokens: [B, T] the corrupted tokens.
      positions: [B, M] where the predictions are made.
      labels: [B, M] the original tokens there.
      weights: [B, M] 1 where a prediction counts, 0 where the text had too few tokens to mask.
    """

    tokens: jax.Array
    positions: jax.Array
    labels: jax.Array
    weights: jax.Array


class Places(NamedTuple):
    """What is predicted of a text.

    Attributes:
      positions: [M] where.
      counts: [M] whether a prediction counts.
      alike: [M] the number of the draw that says what becomes of a position: the same for those that share
        their fate; None if every one has its own.
    """

    positions: jax.Array
    counts: jax.Array
    alike: jax.Array | None = None


@dataclass(frozen=True)
class Masking:
    """15 % of the tokens are predicted: 80 % of them replaced by the mask token, 10 % by a random one,
    10 % kept.

    Every example has the same number of masked tokens, the share `rate` of its real ones: the shapes
    are static, and the loss is less noisy than with a coin per token.

    Attributes:
      mask_token: the id of `[MASK]`.
      special_tokens: ids that are never masked, padding among them.
      vocab_size: random replacements are drawn below it.
      rate: the share of the maskable tokens that is predicted.
      prefix: what tells the time of texts, if any are dated; it is never masked.
    """

    mask_token: int
    special_tokens: tuple[int, ...]
    vocab_size: int
    rate: float = 0.15
    prefix: PrefixTokens | None = None

    @property
    def common(self) -> dict[str, Any]:
        """The attributes that every kind of masking has, by name."""
        return {field.name: getattr(self, field.name) for field in fields(Masking)}

    def num_masked(self, length: int) -> int:
        """M, the masked positions of a full example of `length` tokens."""
        return max(1, round(length * self.rate))

    def num_predictions(self, tokens_BxT: jax.Array) -> jax.Array:
        """How many of an example's masked positions count, [B]: the text decides it, not the draw."""
        maskable_B = jnp.sum(~self.untouched(tokens_BxT), axis=-1)
        wanted_B = jnp.round(maskable_B * self.rate).clip(1)
        return jnp.minimum(jnp.minimum(wanted_B, maskable_B), self.num_masked(tokens_BxT.shape[-1]))

    def untouched(self, tokens_BxT: jax.Array) -> jax.Array:
        """True at what is never masked, [B, T]: special tokens and time prefixes."""
        special_BxT = jnp.isin(tokens_BxT, jnp.asarray(self.special_tokens, tokens_BxT.dtype))
        if self.prefix is None:
            return special_BxT
        return special_BxT | in_prefix(tokens_BxT, special_BxT, self.prefix)

    def corrupt(self, tokens_BxT: jax.Array, keys_B: jax.Array) -> Masked:
        """Draws a corruption for every example from its key."""
        return jax.vmap(self._corrupt_example)(tokens_BxT, keys_B)

    def _corrupt_example(self, tokens_T: jax.Array, key: jax.Array) -> Masked:
        num_masked = self.num_masked(tokens_T.shape[0])
        place_key, action_key, token_key = jax.random.split(key, 3)
        places = self.places(tokens_T, place_key)
        labels_M = tokens_T[places.positions]

        action_M = jax.random.uniform(action_key, (num_masked,))
        if places.alike is not None:
            action_M = action_M[places.alike]
        random_M = jax.random.randint(token_key, (num_masked,), 0, self.vocab_size, tokens_T.dtype)
        replaced_M = jnp.where(
            action_M < 0.8, self.mask_token, jnp.where(action_M < 0.9, random_M, labels_M)
        )
        replaced_M = jnp.where(places.counts, replaced_M, labels_M)
        return Masked(
            tokens=tokens_T.at[places.positions].set(replaced_M.astype(tokens_T.dtype)),
            positions=places.positions,
            labels=labels_M,
            weights=places.counts.astype(jnp.float32),
        )

    def places(self, tokens_T: jax.Array, key: jax.Array) -> Places:
        """Draws what is predicted of a text: single tokens, all equally likely."""
        num_masked = self.num_masked(tokens_T.shape[0])
        scores_T = jnp.where(
            self.untouched(tokens_T), -1.0, jax.random.uniform(key, tokens_T.shape)
        )
        _, positions_M = jax.lax.top_k(scores_T, num_masked)
        # Special tokens have the lowest scores, so they come after all that count.
        return Places(positions_M, jnp.arange(num_masked) < self.num_predictions(tokens_T))
