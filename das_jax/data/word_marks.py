"""What a vocabulary's tokens say of words: where one begins, and whether it names something.

A byte for every token, so that a step can see words, numbers, dates and names in a text of token ids.
"""

import json
import unicodedata
from typing import Any

import numpy as np
from tokenizers import decoders
from transformers import PreTrainedTokenizerBase

CONTINUES = 1
"""Goes on with the word of the token before it, unless that stands alone; what is said of its first letter
counts only then.
"""
ALONE = 2
"""Punctuation or white space: a word by itself, and what follows begins one."""
ENDS_SENTENCE = 4
CAPITAL = 8
"""Begins with a capital letter."""
NUMBER = 16
"""Begins with a digit."""
DATE = 32
"""A month or a day of the week."""
PERHAPS_DATE = 64
"""May and March, which are dates beside a number."""

_MONTHS = ("january", "february", "april", "june", "july", "august", "september", "october")
_SHORT = ("jan", "feb", "mar", "apr", "jun", "jul", "aug", "sep", "sept", "oct", "nov", "dec")
_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_DATES = (*_MONTHS, "november", "december", *_SHORT, *_DAYS)
_PERHAPS_DATES = ("may", "march")
_NO_NAMES = ("I", "A")
# Writing without spaces: every character is a word, as BERT's tokenizers have it.
_UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "BOPOMOFO")


def word_marks(tokenizer: PreTrainedTokenizerBase) -> bytes:
    """The marks of every token, [V] uint8 as bytes, which a masking can be compared by.

    Args:
        tokenizer: Fast; WordPiece marks what continues a word, byte-level BPE and SentencePiece what begins
            one. A vocabulary of whole words does neither.
    """
    spelled = _spelling(tokenizer)
    marks = np.zeros(len(tokenizer), np.uint8)
    for token, number in tokenizer.get_vocab().items():
        marks[number] = _marks(*spelled(token))
    return marks.tobytes()


def is_cased(marks: bytes) -> bool:
    """Whether the vocabulary has capitals, without which names cannot be told from other words."""
    found = np.frombuffer(marks, np.uint8)
    # Uncased vocabularies may hold a few, such as those of special tokens.
    return bool(np.mean(found & (CAPITAL | CONTINUES) == CAPITAL) > 0.01)


def _spelling(tokenizer: PreTrainedTokenizerBase) -> Any:
    """A function from a token to its text and whether it begins a word."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    model = state["model"]
    parts = json.dumps([state["pre_tokenizer"], state["decoder"]])
    if model["type"] == "WordPiece":
        prefix = model["continuing_subword_prefix"]
        return lambda token: (token.removeprefix(prefix), not token.startswith(prefix))
    if '"ByteLevel"' in parts:
        decoder = decoders.ByteLevel()
        return lambda token: _after_space(decoder.decode([token]), " ")
    if '"Metaspace"' in parts:
        return lambda token: _after_space(token, "▁")
    return lambda token: (token, True)


def _after_space(text: str, space: str) -> tuple[str, bool]:
    return text.removeprefix(space), text.startswith((space, "\n", "\t"))


def _marks(text: str, begins: bool) -> int:
    first = text[:1]
    if "\ufffd" not in text and not any(map(str.isalnum, text)):
        # Symbols that are no letters, such as the halves of bytes, belong to a word.
        return ALONE | (ENDS_SENTENCE if any(mark in text for mark in ".!?。！？\n") else 0)
    if unicodedata.name(first, "").startswith(_UNSPACED):
        return 0
    # What stands behind punctuation begins a word, although only white space marks one.
    marks = 0 if begins else CONTINUES
    if first.isupper() and text not in _NO_NAMES:
        marks |= CAPITAL
    if first.isdigit():
        marks |= NUMBER
    if text.lower() in _DATES:
        marks |= DATE
    if text.lower() in _PERHAPS_DATES:
        marks |= PERHAPS_DATE
    return marks
