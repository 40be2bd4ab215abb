"""Tiny masked language models of transformers, every parameter random, so that no two could be confused."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models

SIZES = {
    "vocab_size": 61,
    "num_hidden_layers": 3,
    "hidden_size": 24,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 20,
    "type_vocab_size": 2,
}


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Any]:
    """`make_model(family, tied=True, **config)`: a masked LM in evaluation mode."""

    def make(family: str, tied: bool = True, **config: Any) -> Any:
        transformers.utils.logging.disable_progress_bar()
        pad = 0 if family == "bert" else 1
        values = {**SIZES, "pad_token_id": pad, "tie_word_embeddings": tied, **config}
        model = transformers.AutoModelForMaskedLM.from_config(
            transformers.AutoConfig.for_model(family, **values), attn_implementation="eager"
        )
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
        return model.eval()

    return make


@pytest.fixture
def stored(tmp_path: Path, make_model: Callable[..., Any]) -> Callable[..., Path]:
    """`stored(family, tied=True, **config)`: such a model, saved by transformers."""

    def save(family: str, tied: bool = True, **config: Any) -> Path:
        directory = tmp_path / "stored"
        make_model(family, tied, **config).save_pretrained(directory)
        return directory

    return save


@pytest.fixture
def word_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """A tokenizer of a few words, for what only writes it down."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad"]
    backend = Tokenizer(
        models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]")
    )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]")


@pytest.fixture
def transformers_log() -> Iterator[list[str]]:
    """What transformers warns of, which does not reach pytest by itself."""
    messages: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    handler = Collect(logging.WARNING)
    transformers.utils.logging.add_handler(handler)
    yield messages
    transformers.utils.logging.remove_handler(handler)
