"""The tokenizer of a checkpoint."""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from das_jax.errors import UserError
from das_jax.model import huggingface
from das_jax.model.architecture import Architecture
from das_jax.model.classifier import Classifier
from das_jax.model.language_model import LanguageModel
from das_jax.model.tokenizer_fit import leaves_out_types
from tests.model.vocabularies import BERT, byte_level, config, word_piece

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


TEXTS = ["the drug", "The Drugs café </s> [SEP]", "the <mask> shows [MASK]", "new [DRUG]s 中文"]


def lower_cased() -> Tokenizer:
    tokenizer = byte_level()
    tokenizer.normalizer = normalizers.Lowercase()
    return tokenizer


def another_template() -> Tokenizer:
    tokenizer = word_piece(lowercase=True)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP] [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


@pytest.mark.parametrize(
    ("family", "make", "differs"),
    [
        ("roberta", byte_level, None),
        ("roberta", lower_cased, "normalizer"),
        ("bert", lambda: word_piece(lowercase=True), None),
        ("bert", lambda: word_piece(lowercase=False), "normalizer"),
        ("bert", lambda: word_piece(strip_accents=False), "normalizer"),
        ("bert", another_template, "post_processor"),
        ("bert", byte_level, "model"),
    ],
)
@pytest.mark.parametrize("fast", ["", "Fast"])
def test_what_the_file_holds_counts_not_what_its_class_would_make(
    family: str, make: Callable[[], Tokenizer], differs: str | None, fast: str, tmp_path: Path
) -> None:
    name = {"bert": "BertTokenizer", "roberta": "RobertaTokenizer"}[family] + fast
    directory = config(tmp_path / "model", family, tokenizer_class=name)
    make().save(str(directory / "tokenizer.json"))
    tokenizer = huggingface.load_tokenizer(directory)
    assert tokenizer.backend_tokenizer.to_str() == make().to_str()
    notes = huggingface.tokenizer_notes(directory, tokenizer)
    assert len(notes) == bool(differs)
    assert differs is None or differs in notes[0]

    target = config(tmp_path / "exported", family)
    huggingface.write_tokenizer(target, tokenizer)
    written = json.loads((target / "tokenizer_config.json").read_text())
    assert written["tokenizer_class"] == (name if differs is None else "PreTrainedTokenizerFast")
    theirs = AutoTokenizer.from_pretrained(target)
    assert theirs(TEXTS).data == tokenizer(TEXTS).data
    assert theirs(TEXTS).input_ids == [encoding.ids for encoding in make().encode_batch(TEXTS)]
    assert huggingface.tokenizer_notes(target, tokenizer) == []


@pytest.mark.parametrize("in_a_file", [False, True])
def test_a_chat_template_goes_in_and_out(in_a_file: bool, tmp_path: Path) -> None:
    said = {} if in_a_file else {"chat_template": "{{ messages }}"}
    directory = config(tmp_path / "model", "bert", **said)
    word_piece().save(str(directory / "tokenizer.json"))
    if in_a_file:
        (directory / "chat_template.jinja").write_bytes(b"{{ messages }}\r\n")
    tokenizer = huggingface.load_tokenizer(directory)
    target = config(tmp_path / "exported", "bert")
    huggingface.write_tokenizer(target, tokenizer)
    assert (target / "chat_template.jinja").exists() == in_a_file
    for place in (directory, target):
        assert tokenizer.chat_template == huggingface.load_tokenizer(place).chat_template
    expected = AutoTokenizer.from_pretrained(directory).chat_template
    assert AutoTokenizer.from_pretrained(target).chat_template == expected
    assert tokenizer.chat_template.split() == expected.split()


def test_the_form_of_transformers_5_becomes_one_that_4_reads_too(tmp_path: Path) -> None:
    names = dict(zip(("pad", "unk", "cls", "sep", "mask"), BERT, strict=False))
    directory = config(
        tmp_path / "model",
        "bert",
        tokenizer_class="TokenizersBackend",
        extra_special_tokens=["[DRUG]"],
        auto_map={"AutoTokenizer": [None, "theirs.Tokenizer"]},
        **{f"{name}_token": token for name, token in names.items()},
    )
    word_piece().save(str(directory / "tokenizer.json"))
    tokenizer = huggingface.load_tokenizer(directory)
    target = config(tmp_path / "exported", "bert")
    huggingface.write_tokenizer(target, tokenizer)
    written = json.loads((target / "tokenizer_config.json").read_text())
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert written["additional_special_tokens"] == ["[DRUG]"]
    assert not {"extra_special_tokens", "auto_map"} & set(written)
    theirs = AutoTokenizer.from_pretrained(target)
    assert theirs("the [DRUG]").input_ids == [2, 5, len(BERT), 3]
    assert theirs.all_special_ids == tokenizer.all_special_ids


@pytest.mark.parametrize("alone", ["mask_token", "pad_token"])
def test_mask_and_padding_are_no_other_token(
    alone: str, directory: Path, architecture: Architecture
) -> None:
    file = directory / "tokenizer_config.json"
    file.write_text(
        json.dumps({**json.loads(file.read_text()), "unk_token": "[UNK]", alone: "[UNK]"})
    )
    tokenizer = huggingface.load_tokenizer(directory)
    fits = dataclasses.replace(architecture, pad_token_id=tokenizer.pad_token_id)
    with pytest.raises(UserError, match=rf"'\[UNK\]' as {alone} and as unk_token"):
        huggingface.check_tokenizer(tokenizer, fits)


@pytest.mark.parametrize("content", ["[]", "{", '{"mask_token": 3, "added_tokens_decoder": 1}'])
def test_a_damaged_tokenizer_config(content: str, directory: Path) -> None:
    (directory / "tokenizer_config.json").write_text(content)
    with pytest.raises(UserError, match=r"the tokenizer in .* cannot be read"):
        huggingface.load_tokenizer(directory)


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


TEMPLATE = "[CLS]:0 $A:0 [SEP]:0", "[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1"


@pytest.mark.parametrize(
    ("template", "rows", "said"),
    [
        (
            TEMPLATE,
            1,
            "gives pairs of texts token types up to 1, but type_vocab_size of config.json is 1",
        ),
        ((TEMPLATE[0], "$A:0 $B:2"), 2, "gives pairs of texts token types up to 2"),
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
    assert not leaves_out_types(tokenizer, more)
    # What is never said to the model need not be known to it.
    silent = with_template(directory, *template)
    huggingface.check_tokenizer(silent, few)
    assert leaves_out_types(silent, more) == ("pairs" in said)


@pytest.mark.parametrize(("names", "rows"), [(["token_type_ids"], 2), ([], 1)])
def test_an_exported_classifier_takes_pairs_from_its_tokenizer(
    directory: Path, make_model: Any, names: list[str], rows: int
) -> None:
    tokenizer = with_template(directory, *TEMPLATE, *names)
    make_model("bert", vocab_size=len(WORDS), type_vocab_size=rows).save_pretrained(directory)
    checkpoint = huggingface.load(directory)
    huggingface.check_tokenizer(tokenizer, checkpoint.architecture, pairs=True)
    classifier = Classifier(LanguageModel(checkpoint.architecture), 2)
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
        classifier.logits(params, tokens, jnp.ones_like(tokens, bool), jnp.asarray(types)),
        expected,
        atol=2e-5,
    )
