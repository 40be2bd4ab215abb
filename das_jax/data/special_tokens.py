"""Special tokens that are written out in a text: which of them a corpus's tokenizer recognises."""

import json
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from das_jax.data.settings import Recognised
from das_jax.model.vocabulary import KINDS


def recognising(tokenizer: PreTrainedTokenizerBase, recognised: Recognised) -> Tokenizer:
    """A copy of a tokenizer's backend that recognises some of its added tokens in a text.

    Control tokens are those for masks, padding, unknown words, the beginning and the end of texts;
    markers are all other added tokens.

    Args:
        tokenizer: A fast HuggingFace tokenizer.
        recognised: `markers`: a `[MASK]` in a text is text, a marker `[DRUG]` one token; `all`: both are
            tokens; `none`: both are text.
    """
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    if recognised != "all":
        control = control_tokens(tokenizer)
        state = json.loads(backend.to_str())
        changed = False
        # Special is what the backend is then told to leave as text.
        for token in state["added_tokens"]:
            special = recognised == "none" or token["content"] in control
            changed |= token["special"] != special
            token["special"] = special
        if changed:
            backend = Tokenizer.from_str(json.dumps(state))
        backend.encode_special_tokens = True
        if _smuggled(backend, control - {tokenizer.unk_token}):
            backend = _without_words(state, control - {tokenizer.unk_token})
            backend.encode_special_tokens = True
    backend.no_padding()
    backend.no_truncation()
    return backend


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """The tokens that have a role in a model's input, by name or by convention."""
    usual = {token for kind in KINDS.values() for token in kind.special.values()}
    named = (getattr(tokenizer, name) for name in tokenizer.SPECIAL_TOKENS_ATTRIBUTES)
    return usual | {str(token) for token in named if token is not None}


def _smuggled(backend: Tokenizer, control: set[str]) -> bool:
    """Whether one of these tokens, as text, gets its id after all: as a word of the vocabulary."""
    ids = {number for token in control if (number := backend.token_to_id(token)) is not None}
    texts = [text for token in sorted(control) for text in (token, f"a {token} a{token}a")]
    encodings = backend.encode_batch(texts, add_special_tokens=False)
    return any(ids & set(encoding.ids) for encoding in encodings)


def _without_words(state: dict[str, Any], control: set[str]) -> Tokenizer:
    """The same tokenizer, in whose vocabulary these tokens are words that no text has.

    Unigram models and those that split only at spaces look them up like any word.
    """
    # A word with spaces: what splits text or marks its spaces never asks for it.
    names = {token: f" {token} " for token in control}
    model = state["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(word, word): i for word, i in model["vocab"].items()}
    else:
        model["vocab"] = [[names.get(word, word), score] for word, score in model["vocab"]]
    added = [token for token in state["added_tokens"] if token["content"] not in control]
    return Tokenizer.from_str(json.dumps({**state, "model": model, "added_tokens": added}))
