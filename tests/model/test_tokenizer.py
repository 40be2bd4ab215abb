"""The tokenizer of a checkpoint."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from das_jax.errors import UserError
from das_jax.model import huggingface
from das_jax.model.architecture import Architecture

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A word-level tokenizer, saved as many are: with padding and truncation switched on."""
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_padding(length=16)
    tokenizer.enable_truncation(4)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    names = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    config = {f"{name}_token": token for name, token in names.items()}
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.fixture
def architecture(golden: Any) -> Architecture:
    return huggingface.architecture_of(golden("bert").model)


def test_padding_and_truncation_are_off(directory: Path) -> None:
    tokenizer = huggingface.load_tokenizer(directory)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    assert tokenizer.backend_tokenizer.encode("a b c a b").ids == [2, 5, 6, 7, 5, 6, 3]
    assert tokenizer("c").input_ids == [2, 7, 3]


def test_an_exported_tokenizer_gives_the_same_ids(
    directory: Path, golden: Any, tmp_path: Path, transformers_log: list[str]
) -> None:
    tokenizer = huggingface.load_tokenizer(directory)
    checkpoint = huggingface.load(golden("bert").model)
    target = tmp_path / "exported"
    huggingface.export(
        target, checkpoint.params, checkpoint.config, checkpoint.architecture, tokenizer
    )
    text = "a [MASK] b unheard-of c"
    theirs = AutoTokenizer.from_pretrained(target)
    assert theirs(text).input_ids == tokenizer(text).input_ids == [2, 5, 4, 6, 1, 7, 3]
    assert theirs.get_vocab() == tokenizer.get_vocab()
    assert theirs.all_special_ids == tokenizer.all_special_ids
    again = huggingface.load_tokenizer(target)
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    assert transformers_log == []


def test_a_directory_without_tokenizer(golden: Any) -> None:
    with pytest.raises(UserError, match="has no tokenizer"):
        huggingface.load_tokenizer(golden("bert").model)


def test_a_damaged_tokenizer(directory: Path) -> None:
    file = directory / "tokenizer.json"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match="cannot be read"):
        huggingface.load_tokenizer(directory)


def test_the_tokenizer_must_fit_the_model(directory: Path, architecture: Architecture) -> None:
    tokenizer = huggingface.load_tokenizer(directory)
    huggingface.check_tokenizer(tokenizer, dataclasses.replace(architecture, vocab_size=len(WORDS)))
    with pytest.raises(UserError, match="ids up to 7, but the model's word embedding has 7 rows"):
        huggingface.check_tokenizer(tokenizer, dataclasses.replace(architecture, vocab_size=7))
    with pytest.raises(UserError, match=r"pads with id 0, but config\.json says pad_token_id 1"):
        huggingface.check_tokenizer(tokenizer, dataclasses.replace(architecture, pad_token_id=1))


def test_an_added_token_counts(directory: Path, architecture: Architecture) -> None:
    tokenizer = huggingface.load_tokenizer(directory)
    tokenizer.add_tokens(["new"])
    with pytest.raises(UserError, match="ids up to 8"):
        huggingface.check_tokenizer(
            tokenizer, dataclasses.replace(architecture, vocab_size=len(WORDS))
        )
