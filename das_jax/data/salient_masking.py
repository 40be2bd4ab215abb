"""Spans that name something are predicted first (salient spans; REALM, Guu et al., ICML 2020).

What names something is read off the tokens, by rules on the vocabulary's words: numbers and dates, and words
with a capital that does not just begin a sentence. So every text can be masked so, a kept row or a held-out
chunk as well, nothing more is stored, and no tagger decides. The price: an uncased vocabulary has no capitals
left, and shows numbers and dates alone.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from das_jax.data.span_masking import SpanMasking, Starts, Words
from das_jax.data.word_marks import CAPITAL, DATE, ENDS_SENTENCE, NUMBER, PERHAPS_DATE

NAME, TIME = 1, 2


@dataclass(frozen=True)
class SalientMasking(SpanMasking):
    """Salient spans in a random order until as many tokens are predicted as of `Masking`, then others.

    Attributes:
      one_per_chunk: predict one span of a text and nothing else, as REALM does; a salient one if there is
        one.
    """

    one_per_chunk: bool = False

    def starts(self, words: Words, key: jax.Array) -> Starts:
        first_T, size_T = salient_spans(words)
        ordinary = super().starts(words, key)
        scores_T = jnp.where(first_T, 1 + ordinary.scores, ordinary.scores)
        return Starts(scores_T, jnp.where(first_T, size_T.clip(max=self.longest), 0))

    def counted(self, tokens_T: jax.Array, span_M: jax.Array) -> jax.Array:
        counted_M = super().counted(tokens_T, span_M)
        return counted_M & (span_M == 0) if self.one_per_chunk else counted_M


def salient_spans(words: Words) -> tuple[jax.Array, jax.Array]:
    """Where salient spans begin, [T], and of how many words they are, [T].

    A span is words of one kind that stand next to each other: numbers and dates, or names. A capital at the
    beginning of a sentence makes a name only if the next word has one too.
    """
    marks_T, begins_T, length = words.marks, words.begins, len(words.marks)
    places_T = jnp.arange(length)
    before_T = _shifted(jax.lax.cummax(jnp.where(begins_T, places_T, -1)), -1)
    after_T = _following(begins_T)

    def beside(values_T: jax.Array, place_T: jax.Array) -> jax.Array:
        """What the word at a place next to this one has; 0 if something stands between that is fixed."""
        near_T = place_T.clip(0, length - 1)
        there_T = (place_T == near_T) & (words.part[near_T] == words.part)
        return jnp.where(there_T, values_T[near_T], jnp.zeros_like(values_T))

    capital_T, number_T = marks_T & CAPITAL > 0, marks_T & NUMBER > 0
    by_number_T = beside(number_T, before_T) | beside(number_T, after_T)
    time_T = number_T | (marks_T & DATE > 0) | ((marks_T & PERHAPS_DATE > 0) & by_number_T)
    opens_T = _shifted(words.fixed | (marks_T & ENDS_SENTENCE > 0), True)
    name_T = capital_T & (~opens_T | beside(capital_T, after_T))
    kind_T = jnp.where(begins_T, jnp.where(time_T, TIME, jnp.where(name_T, NAME, 0)), 0)

    goes_on_T = (kind_T > 0) & (beside(kind_T, before_T) == kind_T)
    end_T = _following(begins_T & ~goes_on_T)
    numbers_T = jnp.append(
        words.number, words.number[-1] + 1
    )  # Of the words, and one past the last.
    return (kind_T > 0) & ~goes_on_T, numbers_T[end_T] - words.number


def _shifted(x_T: jax.Array, fill: int | bool) -> jax.Array:
    return jnp.roll(x_T, 1).at[0].set(fill)


def _following(there_T: jax.Array) -> jax.Array:
    """The next place after each where something is, [T]; T where there is none."""
    length = len(there_T)
    next_T = jax.lax.cummin(jnp.where(there_T, jnp.arange(length), length), reverse=True)
    return jnp.roll(next_T, -1).at[-1].set(length)
