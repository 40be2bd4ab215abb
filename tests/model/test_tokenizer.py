"""The tokenizer of a checkpoint."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from das_jax.errors import UserError
from das_jax.model import huggingface
from das_jax.model.architecture import Architecture
from das_jax.model.classifier import Classifier
from das_jax.model.masked_lm import MaskedLM

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
    said = (
        r"ids up to 8, but the model's word embedding has 8 rows: it was not resized after tokens were "
        r"added \(new\); .*resize_token_embeddings\(9\)"
    )
    with pytest.raises(UserError, match=said):
        huggingface.check_tokenizer(
            tokenizer, dataclasses.replace(architecture, vocab_size=len(WORDS))
        )


def test_the_line_that_resizes_an_embedding(
    directory: Path, make_model: Any, transformers_log: list[str]
) -> None:
    make_model("bert", vocab_size=len(WORDS)).save_pretrained(directory)
    tokenizer = huggingface.load_tokenizer(directory)
    tokenizer.add_tokens(["new", "newer"])
    with pytest.raises(UserError, match=r"\(new, newer\)") as refusal:
        huggingface.check_tokenizer(tokenizer, huggingface.load(directory).architecture)
    (code,) = re.findall(r'python -c "(.*)"', str(refusal.value))
    exec(code)
    huggingface.check_tokenizer(tokenizer, huggingface.load(directory).architecture)


def with_template(directory: Path, single: str, pair: str, *names: str) -> Any:
    """A tokenizer that gives token types as a template says, if they are among its outputs."""
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    file = directory / "tokenizer_config.json"
    names = ("input_ids", *names, "attention_mask")
    file.write_text(json.dumps({**json.loads(file.read_text()), "model_input_names": names}))
    return huggingface.load_tokenizer(directory)


BERT = "[CLS]:0 $A:0 [SEP]:0", "[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1"


@pytest.mark.parametrize(
    ("template", "rows", "said"),
    [
        (
            BERT,
            1,
            "gives pairs of texts token types up to 1, but type_vocab_size of config.json is 1",
        ),
        ((BERT[0], "$A:0 $B:2"), 2, "gives pairs of texts token types up to 2"),
        (("[CLS]:2 $A:0", "$A:0 $B:0"), 2, "gives texts the token type 2"),
    ],
)
def test_token_types_that_the_model_does_not_have(
    directory: Path, architecture: Architecture, template: tuple[str, str], rows: int, said: str
) -> None:
    few, more = (dataclasses.replace(architecture, type_vocab_size=n) for n in (rows, rows + 1))
    tokenizer = with_template(directory, *template, "token_type_ids")
    huggingface.check_tokenizer(tokenizer, more)
    with pytest.raises(UserError, match=said):
        huggingface.check_tokenizer(tokenizer, few)
    if "pairs" in said:
        huggingface.check_tokenizer(tokenizer, few, pairs=False)
    # What is never said to the model need not be known to it.
    silent = with_template(directory, *template)
    huggingface.check_tokenizer(silent, few)


@pytest.mark.parametrize(("names", "rows"), [(["token_type_ids"], 2), ([], 1)])
def test_an_exported_classifier_takes_pairs_from_its_tokenizer(
    directory: Path, make_model: Any, names: list[str], rows: int
) -> None:
    tokenizer = with_template(directory, *BERT, *names)
    make_model("bert", vocab_size=len(WORDS), type_vocab_size=rows).save_pretrained(directory)
    checkpoint = huggingface.load(directory)
    huggingface.check_tokenizer(tokenizer, checkpoint.architecture, pairs=True)
    classifier = Classifier(MaskedLM(checkpoint.architecture), 2)
    params = jax.device_get(classifier.init(checkpoint.params, jax.random.key(0)))
    target = directory / "classifier"
    huggingface.export_classifier(
        target, params, checkpoint.config, checkpoint.architecture, ["low", "high"], tokenizer
    )
    inputs = AutoTokenizer.from_pretrained(target)("a b", "c", return_tensors="pt")
    theirs = AutoModelForSequenceClassification.from_pretrained(target).eval()
    with torch.no_grad():
        expected = theirs(**inputs).logits.numpy()
    types = np.array([[0, 0, 0, 0, 1, 1]]) * (rows - 1)
    tokens = jnp.asarray(inputs["input_ids"].numpy())
    np.testing.assert_allclose(
        classifier.logits(params, tokens, jnp.asarray(types)), expected, atol=2e-5
    )
