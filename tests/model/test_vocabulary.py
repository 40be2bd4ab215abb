"""Tokenizers without tokenizer.json: the ids are those of transformers 4.57's slow tokenizers."""

import json
from pathlib import Path
from typing import Any

import pytest

from das_jax.errors import UserError
from das_jax.model import huggingface
from tests.model.vocabularies import (
    BERT,
    byte_level,
    config,
    word_piece,
    write_json,
    write_sentencepiece,
    write_vocabulary,
)


@pytest.mark.parametrize(
    ("options", "tokens"),
    [
        ({}, ["the", "drug", "cafe", "[UNK]", "[UNK]", "[MASK]"]),
        ({"do_lower_case": False}, ["The", "drug", "[UNK]", "[UNK]", "[UNK]", "[MASK]"]),
        ({"strip_accents": False}, ["the", "drug", "[UNK]", "[UNK]", "[UNK]", "[MASK]"]),
        ({"tokenize_chinese_chars": False}, ["the", "drug", "cafe", "[UNK]", "[MASK]"]),
    ],
)
def test_bert(options: dict[str, Any], tokens: list[str], tmp_path: Path) -> None:
    directory = config(tmp_path / "model", "bert", **options)
    write_vocabulary(directory, word_piece())
    tokenizer = huggingface.load_tokenizer(directory)
    assert tokenizer.tokenize("The drug café 中文 [MASK]") == tokens
    pair = tokenizer("drugs", "the drug")
    assert pair.input_ids == [2, 8, 3, 5, 6, 3]
    assert pair.token_type_ids == [0, 0, 0, 1, 1, 1]


def test_the_mask_of_roberta_swallows_the_space_before_it(tmp_path: Path) -> None:
    directory = config(tmp_path / "model", "roberta")
    write_vocabulary(directory, byte_level())
    tokenizer = huggingface.load_tokenizer(directory)
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("the <mask> shows").input_ids)
    assert tokens == ["<s>", "the", "<mask>", "Ġshows", "</s>"]
    (the,) = tokenizer("the", add_special_tokens=False).input_ids
    assert dict(tokenizer("the", "the")) == {
        "input_ids": [0, the, 2, 2, the, 2],
        "attention_mask": [1] * 6,
    }


@pytest.mark.parametrize("lstrip", [False, True])
def test_a_mask_that_says_whether_it_swallows_the_space(lstrip: bool, tmp_path: Path) -> None:
    mask = {"__type": "AddedToken", "content": "<mask>", "lstrip": lstrip, "normalized": False}
    directory = config(tmp_path / "model", "roberta", mask_token=mask)
    write_vocabulary(directory, byte_level())
    tokenizer = huggingface.load_tokenizer(directory)
    ids = tokenizer("the <mask> shows", add_special_tokens=False).input_ids
    assert tokenizer.convert_ids_to_tokens(ids) == [
        "the",
        *([] if lstrip else ["Ġ"]),
        "<mask>",
        "Ġshows",
    ]


def test_sentencepiece_of_xlm_r(tmp_path: Path) -> None:
    directory = config(tmp_path / "model", "xlm-roberta")
    write_sentencepiece(directory)
    tokenizer = huggingface.load_tokenizer(directory)
    # <s> <pad> </s> <unk> come first, then the model's fourth piece and on, and the mask last.
    assert tokenizer("the <mask>  shows a").input_ids == [0, 5, 11, 6, 4, 7, 2]
    assert tokenizer("  the ").input_ids == [0, 5, 2]
    # Elsewhere than in XLM-R, a model may know no map that makes a space of a line break.
    assert tokenizer("\na").input_ids == [0, 4, 3, 7, 2]
    assert tokenizer("a", "a").input_ids == [0, 4, 7, 2, 2, 4, 7, 2]


def test_tokens_that_other_files_add(tmp_path: Path) -> None:
    directory = config(tmp_path / "model", "bert", tokenizer_class="BertTokenizer")
    write_vocabulary(directory, word_piece())
    write_json(directory / "added_tokens.json", {"newword": 12, "[DRUG]": 11})
    write_json(
        directory / "special_tokens_map.json",
        {"sep_token": {"content": "[SEP]"}, "additional_special_tokens": ["[DRUG]"]},
    )
    tokenizer = huggingface.load_tokenizer(directory)
    assert tokenizer("the [DRUG]s newword").input_ids == [2, 5, 11, 1, 12, 3]
    assert tokenizer.all_special_ids == [1, 3, 0, 2, 4, 11]
    write_json(directory / "added_tokens.json", {"[DRUG]": 20})
    with pytest.raises(UserError, match=r"'\[DRUG\]' the id 20, .* it comes to have 11"):
        huggingface.load_tokenizer(directory)


def test_special_tokens_with_other_names(tmp_path: Path) -> None:
    directory = config(tmp_path / "model", "bert", cls_token="the", sep_token="drug")
    write_vocabulary(directory, word_piece())
    assert huggingface.load_tokenizer(directory)("cafe").input_ids == [5, 9, 6]


def write_herbert(directory: Path) -> None:
    write_vocabulary(directory, byte_level())
    write_json(directory / "tokenizer_config.json", {"tokenizer_class": "HerbertTokenizerFast"})


def write_truncated(directory: Path) -> None:
    write_sentencepiece(directory)
    file = directory / "sentencepiece.bpe.model"
    file.write_bytes(file.read_bytes()[:-1])


def write_without_merges(directory: Path) -> None:
    write_vocabulary(directory, byte_level())
    (directory / "merges.txt").unlink()


def write_without_unknown(directory: Path) -> None:
    (directory / "vocab.txt").write_text("\n".join(word for word in BERT if word != "[UNK]"))


@pytest.mark.parametrize(
    ("family", "write", "message"),
    [
        ("bert", write_herbert, r"no tokenizer\.json, .* HerbertTokenizerFast; .*save_pretrained"),
        (
            "xlm-roberta",
            lambda d: write_sentencepiece(d, model_type=2),
            "another kind than XLM-R's",
        ),
        ("xlm-roberta", write_truncated, "cannot be read"),
        ("roberta", write_sentencepiece, r"neither tokenizer\.json nor vocab\.json"),
        ("roberta", write_without_merges, r"neither tokenizer\.json nor merges\.txt"),
        ("bert", write_without_unknown, "cannot be read .*UNK"),
        ("bert", lambda d: (d / "vocab.txt").write_bytes(b"\xff\xfe"), "cannot be read"),
        (
            "bert",
            lambda d: (d / "vocab.txt").write_text("a\n"),
            r"lacks the special token '\[CLS\]'",
        ),
    ],
)
def test_vocabularies_that_cannot_be_used(
    family: str, write: Any, message: str, tmp_path: Path
) -> None:
    directory = config(tmp_path / "model", family)
    write(directory)
    with pytest.raises(UserError, match=message):
        huggingface.load_tokenizer(directory)


def test_what_was_made_is_written_as_tokenizer_json(tmp_path: Path) -> None:
    directory = config(tmp_path / "model", "bert")
    write_vocabulary(directory, word_piece())
    target = config(tmp_path / "exported", "bert")
    huggingface.write_tokenizer(target, huggingface.load_tokenizer(directory))
    written = json.loads((target / "tokenizer.json").read_text())
    assert written == json.loads(word_piece(lowercase=True).to_str())
