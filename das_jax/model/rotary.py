"""Rotary positions: queries and keys are turned by angles that grow with their place in the text (Su et al.,
RoFormer, 2021), so that their product depends on the distance.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from das_jax.precision import at_least_float32


@dataclass(frozen=True)
class Stretch:
    """Llama 3's scaling: long waves are slowed down, short ones kept, and those between by a share.

    Attributes:
      factor: by which long waves are slowed down.
      low: waves longer than `length` / `low` are long.
      high: waves shorter than `length` / `high` are short.
      length: of the texts before scaling.
    """

    factor: float
    low: float
    high: float
    length: float


@dataclass(frozen=True)
class Rotary:
    """How fast the pairs of a head turn.

    Attributes:
      base: the slowest pair turns by about 1 / base a token.
      factor: all are slower by it (`linear` scaling).
      stretch: Llama 3's scaling, or None.
    """

    base: float
    factor: float = 1.0
    stretch: Stretch | None = None

    def frequencies(self, head_size: int) -> np.ndarray:
        """Radians a token of every pair, [K / 2], float64: float32's errors of the power are not in it."""
        frequencies = self.base ** (-2 * np.arange(head_size // 2, dtype=np.float64) / head_size)
        if self.stretch is None:
            return frequencies / self.factor
        waves = 2 * math.pi / frequencies
        s = self.stretch
        kept = np.clip((s.length / waves - s.low) / (s.high - s.low), 0, 1)
        return (1 - kept) * frequencies / s.factor + kept * frequencies


class Turns(NamedTuple):
    """Cosine and sine of every pair's angle, [R, B, T, K / 2], R tables; B is 1 if all texts are alike."""

    cosine: jax.Array
    sine: jax.Array


def turns(tables: Sequence[Rotary], head_size: int, positions_BxT: jax.Array) -> Turns:
    """Those of all tables, in float32 at least.

    Args:
      tables: of the model.
      head_size: K, even.
      positions_BxT: the place of every token in its text, from 0.
    """
    dtype = jnp.promote_types(jnp.float32, jax.dtypes.canonicalize_dtype(jnp.float64))
    frequencies_RxK = np.stack([table.frequencies(head_size) for table in tables])
    angles = (
        positions_BxT.astype(dtype)[None, ..., None] * frequencies_RxK.astype(dtype)[:, None, None]
    )
    return Turns(jnp.cos(angles), jnp.sin(angles))


def turned(x_BxTxHxK: jax.Array, turns: Turns) -> jax.Array:
    """Every head turned, the pair of dimension i being i + K / 2.

    Args:
      x_BxTxHxK: queries or keys.
      turns: of one table, [B, T, K / 2].
    """
    cosine, sine = (part[:, :, None] for part in turns)
    one, other = jnp.split(at_least_float32(x_BxTxHxK), 2, axis=-1)
    both = one * cosine - other * sine, other * cosine + one * sine
    return jnp.concatenate(both, axis=-1).astype(x_BxTxHxK.dtype)
