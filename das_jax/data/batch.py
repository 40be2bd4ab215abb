"""What a step is given."""

from collections.abc import Mapping
from typing import NamedTuple

import jax


class Batch(NamedTuple):
    """A batch, or one device's rows of it.

    Attributes:
      tokens: [B, T] int32 clean token ids, special tokens included.
      index: [B] the position of every example in the domain's stream; its random numbers are drawn from it.
      weight: [B] 1, or 0 for a row that only fills the batch up.
      extra: rows that a method kept, beside the batch, [N, ...]; empty unless its plan asks for them. See
        `data.stream_batches`.
    """

    tokens: jax.Array
    index: jax.Array  # type: ignore[assignment]  # tuple has a method of that name
    weight: jax.Array
    extra: Mapping[str, jax.Array] = {}

    def example_keys(self, rng: jax.Array) -> jax.Array:
        """A key for every example, [B]; the same whatever device holds it."""
        return jax.vmap(lambda index: jax.random.fold_in(rng, index))(self.index)
