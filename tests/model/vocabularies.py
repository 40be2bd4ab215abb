"""Tiny tokenizers of the three families, as checkpoints store them."""

import json
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "drug", "The", "drugs", "cafe", "##s"]
ROBERTA = ["<s>", "<pad>", "</s>", "<unk>"]


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


def config(directory: Path, model_type: str, **tokenizer: Any) -> Path:
    """A directory with config.json, and tokenizer_config.json if anything is to be in it."""
    directory.mkdir()
    write_json(directory / "config.json", {"model_type": model_type})
    if tokenizer:
        write_json(directory / "tokenizer_config.json", tokenizer)
    return directory


def word_piece(**normalizer: Any) -> Tokenizer:
    """What transformers makes of a BERT vocabulary."""
    tokenizer = Tokenizer(
        models.WordPiece({word: i for i, word in enumerate(BERT)}, unk_token="[UNK]")
    )
    tokenizer.normalizer = normalizers.BertNormalizer(**normalizer)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer.add_special_tokens(BERT[:5])
    return tokenizer


def byte_level() -> Tokenizer:
    """What transformers makes of a RoBERTa vocabulary: all bytes, and the words `the` and ` shows`."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e")]
    merges += [("Ġ", "s"), ("Ġs", "h"), ("Ġsh", "o"), ("Ġsho", "w"), ("Ġshow", "s")]
    words = [*ROBERTA, *letters, *map("".join, merges), "<mask>"]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), add_prefix_space=False
    )
    tokenizer.add_special_tokens(ROBERTA)
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, normalized=False)])
    return tokenizer


def write_vocabulary(directory: Path, tokenizer: Tokenizer) -> None:
    """vocab.txt, or vocab.json and merges.txt."""
    model = json.loads(tokenizer.to_str())["model"]
    if model["type"] == "WordPiece":
        (directory / "vocab.txt").write_text("".join(f"{word}\n" for word in model["vocab"]))
        return
    write_json(directory / "vocab.json", model["vocab"])
    lines = ["#version: 0.2", *map(" ".join, model["merges"])]
    (directory / "merges.txt").write_text("".join(f"{line}\n" for line in lines))


def write_sentencepiece(directory: Path, **changes: int) -> None:
    """sentencepiece.bpe.model of XLM-R's kind, without a map of characters."""
    from transformers.utils import sentencepiece_model_pb2_new as sentencepiece

    model = sentencepiece.ModelProto()
    for piece, score, kind in [
        *(("<unk>", 0, 2), ("<s>", 0, 3), ("</s>", 0, 3)),
        *(("▁", -2, 1), ("▁the", -3, 1), ("▁shows", -4, 1), ("a", -5, 1), ("<", -6, 1)),
        *((">", -6, 1), ("mask", -6, 1)),
    ]:
        model.pieces.add(piece=piece, score=score, type=kind)
    model.trainer_spec.model_type = changes.get("model_type", 1)
    (directory / "sentencepiece.bpe.model").write_bytes(model.SerializeToString())
