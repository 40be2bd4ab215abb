"""Spans of whole words are predicted instead of single tokens (SpanBERT; Joshi et al., TACL 2020)."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from das_jax.data.masking import Masking, Places
from das_jax.data.word_marks import ALONE, CONTINUES


def span_lengths(p: float, longest: int) -> np.ndarray:
    """The chances of 1, 2, ... words: p (1 - p)^(l - 1), renormalised, [longest].

    A length that is drawn and then clipped to the longest would have another mean: 4.46 instead of 3.80 for
    0.2 and 10.
    """
    chances = p * (1 - p) ** np.arange(longest)
    return chances / chances.sum()


class Words(NamedTuple):
    """A text's words, by token.

    Attributes:
      marks: [T] what the vocabulary says of each token.
      fixed: [T] true at what is never masked; no span reaches over it.
      begins: [T] whether a word begins here.
      number: [T] of the word, from 0; of what is fixed, that of the word before it.
      part: [T] of the text between two fixed tokens.
    """

    marks: jax.Array
    fixed: jax.Array
    begins: jax.Array
    number: jax.Array
    part: jax.Array


class Starts(NamedTuple):
    """Where spans may begin.

    Attributes:
      scores: [T] the highest is the first to be drawn; below 0 where no span begins.
      words: [T] how long the span is that begins here; 0 for a length yet to be drawn.
    """

    scores: jax.Array
    words: jax.Array | None = None


@dataclass(frozen=True)
class SpanMasking(Masking):
    """Spans of words until as many tokens are predicted as of `Masking`; the last span is cut.

    A span begins at a word drawn uniformly among those that are not masked yet, and ends at the latest where
    something begins that is never masked. Where it runs into another span, both are one.

    Attributes:
      p: of the geometric distribution of a span's words.
      longest: the most words of a span.
      per_span: whether a span is masked, replaced or kept as a whole; else every token by itself.
      marks: of the vocabulary; see `word_marks`.
    """

    p: float = 0.2
    longest: int = 10
    per_span: bool = True
    marks: bytes = b""

    @cached_property
    def _bounds(self) -> np.ndarray:
        """Of a uniform number that says how many words a span has, [longest - 1]."""
        return np.cumsum(span_lengths(self.p, self.longest))[:-1].astype(np.float32)

    def words(self, tokens_T: jax.Array) -> Words:
        """The words of a text."""
        marks_T = jnp.asarray(np.frombuffer(self.marks, np.uint8))[tokens_T]
        fixed_T = self.untouched(tokens_T)
        breaks_T = fixed_T | (marks_T & ALONE > 0)
        begins_T = (marks_T & CONTINUES == 0) | jnp.roll(breaks_T, 1).at[0].set(True)
        begins_T &= ~fixed_T
        return Words(marks_T, fixed_T, begins_T, jnp.cumsum(begins_T) - 1, jnp.cumsum(fixed_T))

    def starts(self, words: Words, key: jax.Array) -> Starts:
        """Every word has the same chance."""
        return Starts(jnp.where(words.begins, jax.random.uniform(key, words.begins.shape), -1.0))

    def places(self, tokens_T: jax.Array, key: jax.Array) -> Places:
        """Draws spans.

        The words stand in a random order, each with a length, and begin a span in turn unless one covers
        them already: the next such word is a uniform draw of those that are left. All that are looked at are
        masked in the end, so that no more of them are needed than there are tokens to mask.
        """
        num_masked, length = self.num_masked(len(tokens_T)), len(tokens_T)
        start_key, length_key = jax.random.split(key)
        words = self.words(tokens_T)
        starts = self.starts(words, start_key)
        scores_M, start_M = jax.lax.top_k(starts.scores, num_masked)
        drawn_Mx1 = jax.random.uniform(length_key, (num_masked, 1))
        size_M = 1 + jnp.sum(drawn_Mx1 > jnp.asarray(self._bounds)[None], axis=-1)
        if starts.words is not None:
            size_M = jnp.where(starts.words[start_M] > 0, starts.words[start_M], size_M)
        first_M, part_M = words.number[start_M], words.part[start_M]

        def inside(number_X: jax.Array, part_X: jax.Array) -> jax.Array:
            """Whether words lie in the spans that would begin at each of the starts, [M, X]."""
            from_MxX = number_X[None] - first_M[:, None]
            return (
                (scores_M >= 0)[:, None]
                & (part_X[None] == part_M[:, None])
                & (from_MxX >= 0)
                & (from_MxX < size_M[:, None])
            )

        begins_M = _first_come(inside(first_M, part_M))
        covers_MxT = begins_M[:, None] & inside(words.number, words.part) & ~words.fixed[None]
        order_Mx1 = jnp.arange(num_masked)[:, None]
        span_T = jnp.min(jnp.where(covers_MxT, order_Mx1, num_masked), axis=0)
        # Span by span, each from its beginning.
        rank_T = span_T * length + jnp.arange(length)
        _, positions_M = jax.lax.top_k(-rank_T, num_masked)
        span_M = span_T[positions_M]
        return Places(
            positions_M, self.counted(tokens_T, span_M), span_M if self.per_span else None
        )

    def counted(self, tokens_T: jax.Array, span_M: jax.Array) -> jax.Array:
        """Which of the masked positions count, in the order of their spans, [M]."""
        return jnp.arange(len(span_M)) < self.num_predictions(tokens_T)


def _first_come(covers_MxM: jax.Array) -> jax.Array:
    """Which of M spans begin, if one does unless an earlier one that began covers its start, [M].

    Args:
      covers_MxM: whether a span (row) would cover the start of another (column).
    """
    count = len(covers_MxM)

    def decide(begins_M: jax.Array, each: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        number, covered_M = each
        earlier_M = jnp.arange(count) < number
        return begins_M.at[number].set(~jnp.any(begins_M & covered_M & earlier_M)), None

    # Of the text, as inside `shard_map` it has to be; what it holds is overwritten before it is read.
    undecided_M = covers_MxM[0]
    return jax.lax.scan(decide, undecided_M, (jnp.arange(count), covers_MxM.T))[0]
