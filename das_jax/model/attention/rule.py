"""What a token may read, and how scores become weights: all that differs between layers and families."""

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from das_jax.model.activations import soft_cap


@dataclass(frozen=True)
class Rule:
    """Attention of a layer, as static data.

    Padding reads padding and is read by nothing else, so every query has a key: itself.

    Attributes:
      dropout: rate on the weights.
      causal: whether a token reads only itself and what stands before it.
      reach: the longest distance between a token and what it reads, both ways if not causal: half of
        ModernBERT's `local_attention`, W - 1 for a causal window of W; None for any.
      scale: of the scores; None for K^-.5.
      cap: c of c tanh(score / c), after scaling and before the mask; None for none.
    """

    dropout: float = 0.0
    causal: bool = False
    reach: int | None = None
    scale: float | None = None
    cap: float | None = None

    def scale_of(self, size: int) -> float:
        """The scale of the scores of heads of a size."""
        return size**-0.5 if self.scale is None else self.scale

    def within(self, length: int) -> "Rule":
        """The same rule for texts of a length: a window that holds all of them is none."""
        if self.reach is None or self.reach < length - 1:
            return self
        return dataclasses.replace(self, reach=None)

    @property
    def anywhere(self) -> bool:
        """Whether a key counts wherever it stands."""
        return not self.causal and self.reach is None

    def near(self, distance: jax.Array) -> jax.Array:
        """Whether a key counts at a distance: the query's position minus the key's."""
        if self.reach is None:
            return distance >= 0
        near = jnp.abs(distance) <= self.reach
        return near & (distance >= 0) if self.causal else near

    def capped(self, scores: jax.Array) -> jax.Array:
        """Scores after the soft cap."""
        return soft_cap(scores, self.cap)

    def through_cap(self, to_capped: jax.Array, capped: jax.Array) -> jax.Array:
        """The gradient before the soft cap, from that behind it and the value there."""
        return to_capped if self.cap is None else to_capped * (1 - jnp.square(capped / self.cap))


PADDING = -1
"""The segment of padding."""


def segments_of(mask_BxT: jax.Array, segments_BxT: jax.Array | None) -> jax.Array:
    """The segment of every token, int32; one for a whole text if there are none."""
    segments_BxT = jnp.int32(0) if segments_BxT is None else segments_BxT.astype(jnp.int32)
    return jnp.where(mask_BxT, segments_BxT, PADDING)
