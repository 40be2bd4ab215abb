"""Word by word, a text has the tokens it has as a whole."""

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, trainers

from das_jax.data.tokenization import encoder
from das_jax.data.words import encode_texts, encode_words, splits_at_spaces

# Words that a tiny vocabulary knows, and what is known to be awkward: all sorts of white space, accents
# that join what stands before them, special tokens, punctuation.
AWKWARD = (
    "é",
    "\u0301",
    "日本",
    "\x1c",
    "\n",
    "\t",
    "\u00a0",
    "\u3000",
    "\u200b",
    " ",
    "  ",
    "   ",
)
ORDINARY = (
    "the",
    "fox",
    "learns",
    "The",
    "it's",
    "a",
    "<mask>",
    "[SEP]",
    ".",
    ", ",
    "(",
    "-",
    "4.5",
)
FRAGMENTS = st.sampled_from(AWKWARD + ORDINARY) | st.text(max_size=4)
TEXTS = st.lists(
    st.lists(FRAGMENTS | st.just(" "), min_size=1, max_size=20).map("".join).filter(bool),
    min_size=1,
    max_size=5,
)


@pytest.mark.parametrize("name", ["bert_tokenizer", "roberta_tokenizer"])
@settings(max_examples=300, deadline=None)
@given(texts=TEXTS)
def test_words_have_the_tokens_of_the_whole_text(name: str, request, texts: list[str]):
    backend = encoder(request.getfixturevalue(name)).backend
    by_word = [ids.tolist() for ids in encode_words(backend, texts)]
    assert by_word == [ids.tolist() for ids in encode_texts(backend, texts)]


@pytest.mark.parametrize("name", ["bert_tokenizer", "roberta_tokenizer"])
def test_both_families_are_tokenised_by_word(name: str, request):
    enc = encoder(request.getfixturevalue(name))
    assert splits_at_spaces(enc.backend)
    assert enc.encode.func is encode_words


def tokens_over_spaces() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=90, show_progress=False)
    tokenizer.train_from_iterator(["it is in the end of the of the model is in the"] * 9, trainer)
    return tokenizer


def prefixed() -> Tokenizer:
    """Puts a mark before every text it is given."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["the end"], trainer)
    tokenizer.normalizer = normalizers.Prepend("_")
    return tokenizer


def greedy_token() -> Tokenizer:
    """Has a token that takes the white space after it."""
    tokenizer = prefixed()
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_tokens([AddedToken("fox", rstrip=True)])
    return tokenizer


@pytest.mark.parametrize("make", [tokens_over_spaces, prefixed, greedy_token])
def test_a_tokenizer_for_which_words_are_not_enough(make):
    assert not splits_at_spaces(make())
