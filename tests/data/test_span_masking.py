"""Spans and salient spans: what is masked, and how often."""

import re
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from das_jax.data.masking import Masked, Masking
from das_jax.data.salient_masking import SalientMasking, salient_spans
from das_jax.data.span_masking import SpanMasking, span_lengths
from das_jax.data.word_marks import (
    ALONE,
    CAPITAL,
    CONTINUES,
    DATE,
    ENDS_SENTENCE,
    NUMBER,
    PERHAPS_DATE,
    is_cased,
    word_marks,
)
from das_jax.training.sharding import make_sharding

# Words of 5 to 59, what continues one of 60 to 79, punctuation of 80 to 84, of which 80 ends sentences,
# names of 85 to 94 and numbers of 95 to 99.
MARKS = np.zeros(100, np.uint8)
MARKS[60:80], MARKS[80:85], MARKS[85:95], MARKS[95:] = CONTINUES, ALONE, CAPITAL, NUMBER
MARKS[80] |= ENDS_SENTENCE
SIZES = {"mask_token": 4, "special_tokens": (0, 1, 2, 3, 4), "vocab_size": 100}
PLAIN, SPANS, BY_TOKEN = (
    Masking(**SIZES),
    SpanMasking(**SIZES, marks=MARKS.tobytes()),
    SpanMasking(**SIZES, marks=MARKS.tobytes(), per_span=False),
)


@cache
def texts(rows: int = 128, seed: int = 0) -> np.ndarray:
    """Of 128 tokens, with a document's end in the middle of some, and the last ones padded."""
    generator = np.random.default_rng(seed)
    tokens = generator.integers(5, 85, (rows, 128)).astype(np.int32)
    tokens[:, 0], tokens[:, -1] = 2, 3
    tokens[::3, 60] = 3
    tokens[-8:, 40], tokens[-8:, 41:] = 3, 0
    tokens[-1, 3:] = 0  # Two words, at most.
    return tokens


def corrupted(masking: Masking, tokens: np.ndarray, seed: int = 0) -> Masked:
    keys = jax.random.split(jax.random.key(seed), len(tokens))
    return jax.device_get(jax.jit(masking.corrupt)(jnp.asarray(tokens, jnp.int32), keys))


def chosen(masked: Masked, shape: tuple[int, ...]) -> np.ndarray:
    """Which tokens are predicted, [B, T]."""
    found = np.zeros(shape, bool)
    for row, positions, counts in zip(found, masked.positions, masked.weights > 0, strict=True):
        assert not row[positions[counts]].any()
        row[positions[counts]] = True
        assert row.sum() == counts.sum()  # None twice.
    return found


def word_starts(tokens: np.ndarray) -> np.ndarray:
    """Written as a loop."""
    starts = np.zeros(tokens.shape, bool)
    for row, found in zip(tokens, starts, strict=True):
        for i, token in enumerate(row):
            before = row[i - 1]
            found[i] = token > 4 and (
                before <= 4 or 80 <= before < 85 or not MARKS[token] & CONTINUES
            )
    return starts


@pytest.mark.parametrize(("p", "longest"), [(0.2, 10), (0.3, 6)])
def test_lengths_are_renormalised_and_not_clipped(systems: Any, p: float, longest: int) -> None:
    arrays = systems("bert").arrays("policies")
    chances, name = span_lengths(p, longest), f"p{p:g}.max{longest}"
    mean = chances @ np.arange(1, longest + 1)
    np.testing.assert_allclose(chances, arrays[f"span.pmf.{name}"], rtol=1e-9)
    assert mean == pytest.approx(float(arrays[f"span.mean.{name}"]))
    assert mean != pytest.approx(float(arrays[f"span.clipped_mean.{name}"]), rel=0.1)
    if (p, longest) == (0.2, 10):
        assert mean == pytest.approx(3.797, abs=5e-4)


def test_whole_words_are_masked_until_the_usual_budget_is_spent() -> None:
    tokens = texts()
    masked, plain = corrupted(SPANS, tokens), corrupted(PLAIN, tokens)
    np.testing.assert_array_equal(masked.weights.sum(1), plain.weights.sum(1))
    np.testing.assert_array_equal(masked.weights.sum(1), SPANS.num_predictions(tokens))
    found, starts = chosen(masked, tokens.shape), word_starts(tokens)
    assert not (found & (tokens < 5)).any()
    labels = np.take_along_axis(tokens, masked.positions, 1)
    np.testing.assert_array_equal(masked.labels, labels)
    assert not ((masked.tokens != tokens) & ~found).any()
    whole = 0
    for row, text, begins in zip(found, tokens, starts, strict=True):
        # Words of which only a part is masked: the last span of a text is cut.
        parts = np.split(np.arange(128), np.flatnonzero(begins | (text < 5)))
        cut = [part for part in parts if 0 < row[part].sum() < len(part)]
        assert len(cut) <= 1
        assert all(row[part[0]] for part in cut)  # Its end is cut, not its beginning.
        whole += not cut
    assert whole > len(tokens) / 4


def test_spans_are_as_long_as_drawn_and_begin_anywhere() -> None:
    """Of single-token words, the first span of each of many texts, at least where nothing cuts it."""
    tokens = np.full((4096, 128), 5, np.int32)
    tokens[:, 0], tokens[:, -1] = 2, 3
    masked = corrupted(SPANS, tokens, seed=3)
    steps = np.diff(masked.positions, axis=1)
    first = np.argmax(steps != 1, axis=1) + 1  # Where positions go on, so does the span.
    start, free = masked.positions[:, 0], masked.positions[:, 0] < 117
    chances = span_lengths(0.2, 10)
    # A second span may go on where the first one ends, once in some fifty texts.
    found = np.bincount(np.minimum(first[free], 11), minlength=12)[1:11] / free.sum()
    np.testing.assert_allclose(found, chances, atol=0.025)
    spread = np.bincount(start, minlength=128)[1:127] / (4096 / 126)
    assert 0.4 < spread.min() < spread.max() < 1.8


def test_one_decision_for_a_span_or_one_for_every_token() -> None:
    tokens = np.tile(texts()[1:2], (512, 1))
    shares = []
    for masking in (SPANS, BY_TOKEN):
        masked = corrupted(masking, tokens, seed=1)
        there = np.take_along_axis(masked.tokens, masked.positions, 1) == 4
        assert np.mean(there) == pytest.approx(0.8, abs=0.04)
        together = np.diff(masked.positions, axis=1) == 1
        shares.append(np.mean((there[:, 1:] == there[:, :-1])[together]))
    assert shares[0] > 0.93  # But where one span goes on where another ends.
    assert shares[1] == pytest.approx(0.8**2 + 0.2**2, abs=0.04)


def test_salient_spans_come_first_and_are_filled_up() -> None:
    tokens = texts() % 55 + 5
    tokens[:, 0], tokens[:, -1] = 2, 3
    tokens[:, 20:23] = 85, 86, 87  # A name of three words.
    tokens[:, 30] = 80  # The end of a sentence,
    tokens[:, 31] = 88  # whose first word has a capital for that alone;
    tokens[:, 40], tokens[:, 41:43] = 80, (89, 90)  # and one that begins with a name.
    tokens[:, 50:53] = 95, 96, 91  # A date, and a name that is another span.
    tokens[:, 60:62] = 3, 92  # A document's first word.
    salient = SalientMasking(**SIZES, marks=MARKS.tobytes())
    masked = corrupted(salient, tokens)
    found = chosen(masked, tokens.shape)
    named = np.zeros(128, bool)
    named[[20, 21, 22, 41, 42, 50, 51, 52]] = True
    assert found[:, named].all()
    np.testing.assert_array_equal(found.sum(1), SPANS.num_predictions(tokens))
    filled = found[:, ~named & (tokens[0] > 4)].mean(0)
    assert filled.max() < 0.25
    alone = corrupted(SalientMasking(**SIZES, marks=MARKS.tobytes(), one_per_chunk=True), tokens)
    spans = {tuple(np.flatnonzero(row)) for row in chosen(alone, tokens.shape)}
    assert spans == {(20, 21, 22), (41, 42), (50, 51), (52,)}


def test_salient_spans_are_spans_where_nothing_is_salient() -> None:
    tokens = texts()
    salient = SalientMasking(**SIZES, marks=MARKS.tobytes())
    for ours, theirs in zip(corrupted(salient, tokens), corrupted(SPANS, tokens), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("cls", [SpanMasking, SalientMasking])
def test_it_is_drawn_the_same_on_any_mesh(cls: type[SpanMasking]) -> None:
    """Inside `shard_map`, where a step draws it."""
    masking = cls(**SIZES, marks=MARKS.tobytes())
    tokens, keys = jnp.asarray(texts()[:16]), jax.random.split(jax.random.key(0), 16)
    sharding = make_sharding(8)
    rows = PartitionSpec(sharding.batch)
    mapped = jax.shard_map(
        masking.corrupt, mesh=sharding.mesh, in_specs=(rows, rows), out_specs=rows
    )
    there, here = jax.jit(mapped)(tokens, keys), jax.jit(masking.corrupt)(tokens, keys)
    for ours, theirs in zip(there, here, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("bert", "runs before the quick foxes"),
        ("roberta", "runs before the quick foxes learns. gradients (of heads) scale, it\njumps"),
        ("unigram", "runs before. the quick foxes <model> learned"),
    ],
)
def test_words_are_those_of_the_text(kind: str, text: str, request: pytest.FixtureRequest) -> None:
    """Of every tokenizer's own marks; a text's first word has none."""
    tokenizer = request.getfixturevalue(f"{kind}_tokenizer")
    tokens = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
    special = tuple(tokenizer.all_special_ids)
    masking = SpanMasking(0, special, len(tokenizer), marks=word_marks(tokenizer))
    ids = [tokenizer.mask_token_id, *tokens.ids[: sum(tokens.attention_mask)]]
    begins = np.asarray(masking.words(jnp.asarray(ids, jnp.int32)).begins)[1:]
    assert not begins.all()
    starts = {tokens.offsets[i][0] for i in np.flatnonzero(begins)}
    cuts = {match.start() for match in re.finditer(r"\w+|[^\w ]", text)}
    assert {i + (text[i] == " ") for i in starts} == cuts


def test_what_stands_behind_punctuation_names_something_too(
    roberta_tokenizer: PreTrainedTokenizerFast,
) -> None:
    """No space marks it as a word's beginning; within a word a digit or capital says nothing."""
    text = 'scale (2021) of "Foxes" x2 heaDs'
    tokens = roberta_tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
    masking = SalientMasking(**SIZES, marks=word_marks(roberta_tokenizer))
    first, words = salient_spans(masking.words(jnp.asarray(tokens.ids, jnp.int32)))
    found = [tokens.offsets[i][0] for i in np.flatnonzero(first)]
    assert found == [text.index("2021"), text.index("Foxes")]
    assert (np.asarray(words)[np.flatnonzero(first)] == 1).all()


def test_what_a_vocabulary_says_of_its_words() -> None:
    words = ["[PAD]", "[UNK]", "[MASK]", "Fox", "##Fox", "fox", "I", "2021", "##21", "may", "May"]
    words += ["October", ".", "...", ",", "東", "##京", "\u00c9t\u00e9"]
    backend = Tokenizer(
        models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, mask_token="[MASK]")
    marks = dict(zip(words, word_marks(tokenizer), strict=True))
    expected = dict.fromkeys(words, 0) | {
        "Fox": CAPITAL,
        "##Fox": CONTINUES | CAPITAL,
        "2021": NUMBER,
        "##21": CONTINUES | NUMBER,
        "may": PERHAPS_DATE,
        "May": PERHAPS_DATE | CAPITAL,
        "October": DATE | CAPITAL,
        ".": ALONE | ENDS_SENTENCE,
        "...": ALONE | ENDS_SENTENCE,
        ",": ALONE,
        "\u00c9t\u00e9": CAPITAL,
    }
    assert {word: mark for word, mark in marks.items() if word[0] != "["} == {
        word: mark for word, mark in expected.items() if word[0] != "["
    }
    assert is_cased(word_marks(tokenizer))
