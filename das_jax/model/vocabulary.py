"""Tokenizers of BERT, RoBERTa and XLM-R made of their vocabularies, where there is no tokenizer.json."""

import json
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from das_jax.errors import UserError

SENTENCEPIECE = "sentencepiece.bpe.model"


class Ends(NamedTuple):
    """The tokens around a text, and their ids."""

    first: str
    last: str
    ids: Mapping[str, int]


class Kind(NamedTuple):
    """What is the same in all tokenizers of a family.

    Attributes:
      make: the tokenizer, but for what it puts around a text, from the directory, tokenizer_config.json and
        the special tokens by their names.
      surround: the post-processor that puts the ends around a text, from tokenizer_config.json.
      special: what its special tokens are called unless the checkpoint says otherwise.
      mask_lstrip: whether the mask token stands for a word with the space before it.
      inputs: what its models take.
      classes: the classes of transformers that tokenise as it does.
      file: what its vocabulary is usually called.
    """

    make: Callable[[Path, dict[str, Any], dict[str, str]], Tokenizer]
    surround: Callable[[dict[str, Any], Ends], Any]
    special: Mapping[str, str]
    mask_lstrip: bool
    inputs: tuple[str, ...]
    classes: tuple[str, ...]
    file: str


def kind_of(directory: Path, tokenizer_class: str | None) -> Kind | None:
    """Whose tokenizer a directory holds, by its class, else by its model, else by its vocabulary.

    None if none of the three.
    """
    if tokenizer_class is not None:
        name = str(tokenizer_class).removesuffix("Fast")
        return next((kind for kind in KINDS.values() if name in kind.classes), None)
    try:
        model_type = json.loads((directory / "config.json").read_bytes())["model_type"]
    except (OSError, ValueError, KeyError, TypeError):
        model_type = None
    if model_type is None:
        return next((kind for kind in KINDS.values() if (directory / kind.file).is_file()), None)
    return KINDS.get(str(model_type))


def build(
    directory: Path, kind: Kind | None, config: dict[str, Any], special: dict[str, str]
) -> Tokenizer:
    """The tokenizer of vocab.txt, of vocab.json and merges.txt, or of a SentencePiece model.

    Args:
      directory: where they are.
      kind: whose tokenizer it is.
      config: tokenizer_config.json; `do_lower_case`, `strip_accents`, `tokenize_chinese_chars` and
        `add_prefix_space` are heeded.
      special: the special tokens by their names.

    Raises:
      UserError: a file is missing, or the tokenizer is of another family.
    """
    if kind is None:
        held = config.get("tokenizer_class") or "a tokenizer that nothing there names"
        raise UserError(
            f"{directory} has no tokenizer.json, and das-jax makes none of what is there, {held}; "
            f"{remedy(directory)}"
        )
    tokenizer = kind.make(directory, config, special)
    first, last = special.get("cls_token", ""), special.get("sep_token", "")
    ids = {}
    for token in (first, last):
        if (number := tokenizer.token_to_id(token)) is None:
            raise UserError(
                f"the vocabulary in {directory} lacks the special token {token!r}; "
                "fetch it again, or correct tokenizer_config.json"
            )
        ids[token] = number
    tokenizer.post_processor = kind.surround(config, Ends(first, last, ids))
    return tokenizer


def _template(second: str) -> Callable[[dict[str, Any], Ends], Any]:
    """Both ends around a text, and behind it a second one in this form."""

    def surround(config: dict[str, Any], ends: Ends) -> Any:
        first, last, ids = ends
        return processors.TemplateProcessing(
            single=f"{first} $A {last}",
            pair=f"{first} $A {last} {second.format(last=last)}",
            special_tokens=list(ids.items()),
        )

    return surround


def _surround_roberta(config: dict[str, Any], ends: Ends) -> Any:
    first, last, ids = ends
    return processors.RobertaProcessing(
        (last, ids[last]),
        (first, ids[first]),
        config.get("trim_offsets", True),
        config.get("add_prefix_space", False),
    )


def remedy(directory: Path) -> str:
    """How a person gets a tokenizer.json."""
    return (
        'write one where transformers can read the tokenizer: python -c "from transformers import '
        f"AutoTokenizer; AutoTokenizer.from_pretrained('{directory}').save_pretrained('{directory}')\""
    )


def _word_piece(directory: Path, config: dict[str, Any], special: dict[str, str]) -> Tokenizer:
    lines = _present(directory, "vocab.txt").read_text(encoding="utf-8").split("\n")
    if not lines[-1]:
        lines.pop()
    vocabulary = {line.removesuffix("\r"): number for number, line in enumerate(lines)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=special.get("unk_token", "")))
    tokenizer.normalizer = normalizers.BertNormalizer(
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
        strip_accents=config.get("strip_accents"),
        lowercase=config.get("do_lower_case", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def _byte_level(directory: Path, config: dict[str, Any], special: dict[str, str]) -> Tokenizer:
    words, merges = (_present(directory, name) for name in ("vocab.json", "merges.txt"))
    tokenizer = Tokenizer(models.BPE.from_file(str(words), str(merges)))
    prefix = config.get("add_prefix_space", False)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _unigram(directory: Path, config: dict[str, Any], special: dict[str, str]) -> Tokenizer:
    file = _present(directory, SENTENCEPIECE)
    try:
        # What protobuf makes of the format's description; the library sentencepiece is not needed.
        sentencepiece: Any = import_module("transformers.utils.sentencepiece_model_pb2_new")
    except ImportError as error:
        raise UserError(
            f"{file} is a SentencePiece model, which cannot be read without protobuf: pip install "
            f"protobuf; or, {remedy(directory)}"
        ) from error
    model = sentencepiece.ModelProto.FromString(file.read_bytes())
    if model.trainer_spec.model_type != sentencepiece.TrainerSpec.UNIGRAM:
        raise UserError(
            f"{file} is a SentencePiece model of another kind than XLM-R's, which is unigram; "
            f"{remedy(directory)}"
        )
    # The ids are fairseq's: the model's own <unk>, <s> and </s> give way to four, and the mask is the last.
    names = ("bos_token", "pad_token", "eos_token", "unk_token")
    pieces = [(special.get(name, ""), 0.0) for name in names]
    pieces += [(piece.piece, piece.score) for piece in model.pieces[3:]]
    pieces.append((special.get("mask_token", ""), 0.0))
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=names.index("unk_token")))
    scheme: Any = "always" if config.get("add_prefix_space", True) else "never"
    words: Any = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    if characters := model.normalizer_spec.precompiled_charsmap:
        # It makes every white space a space.
        tokenizer.normalizer = normalizers.Precompiled(characters)
        words = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), words])
    elif model.normalizer_spec.remove_extra_whitespaces:
        tokenizer.normalizer = normalizers.Sequence(
            [
                normalizers.Replace(Regex(r"\A +| +\z"), ""),
                normalizers.Replace(Regex(" {2,}"), " "),
            ]
        )
    tokenizer.pre_tokenizer = words
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    return tokenizer


def _present(directory: Path, name: str) -> Path:
    if not (directory / name).is_file():
        raise UserError(
            f"{directory} has neither tokenizer.json nor {name}; copy one of them of the model there"
        )
    return directory / name


_BERT = {f"{name.lower()}_token": f"[{name}]" for name in ("UNK", "SEP", "PAD", "CLS", "MASK")}
_ROBERTA = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "cls_token": "<s>",
    "mask_token": "<mask>",
}
_NO_TYPES = ("input_ids", "attention_mask")

KINDS: dict[str, Kind] = {
    "bert": Kind(
        _word_piece,
        _template("$B:1 {last}:1"),
        _BERT,
        False,
        ("input_ids", "token_type_ids", "attention_mask"),
        ("BertTokenizer", "ElectraTokenizer"),
        "vocab.txt",
    ),
    "roberta": Kind(
        _byte_level,
        _surround_roberta,
        _ROBERTA,
        True,
        _NO_TYPES,
        ("RobertaTokenizer",),
        "vocab.json",
    ),
    "xlm-roberta": Kind(
        _unigram,
        _template("{last} $B {last}"),
        _ROBERTA,
        True,
        _NO_TYPES,
        ("XLMRobertaTokenizer",),
        SENTENCEPIECE,
    ),
}
"""By the `model_type` of the models that they belong to."""
