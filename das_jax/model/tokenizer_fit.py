"""Whether a tokenizer and a model belong together."""

from transformers import PreTrainedTokenizerFast

from das_jax.errors import UserError
from das_jax.model.architecture import Architecture


def check_tokenizer(
    tokenizer: PreTrainedTokenizerFast, architecture: Architecture, pairs: bool = True
) -> None:
    """Checks that a tokenizer and a model belong together.

    Args:
      tokenizer: the tokenizer.
      architecture: of the model.
      pairs: whether pairs of texts will be asked for; a model of single texts may be unable to tell them
        apart.

    Raises:
      UserError: the tokenizer has ids beyond the word embedding, token types beyond their embedding or, of
        a masked model, another padding token, or a token for masks or padding that is also another.
    """
    _check_ids(tokenizer, architecture)
    # Of a decoder's chunks no id says what is padding.
    if not architecture.causal:
        _check_padding(tokenizer, architecture)
        _check_apart(tokenizer)
    _check_types(tokenizer, architecture, pairs)


def _check_padding(tokenizer: PreTrainedTokenizerFast, architecture: Architecture) -> None:
    if tokenizer.pad_token_id != architecture.pad_token_id:
        raise UserError(
            f"the tokenizer of {tokenizer.name_or_path} pads with id {tokenizer.pad_token_id}, but "
            f"config.json says pad_token_id {architecture.pad_token_id}; correct the one that is wrong"
        )


def _check_apart(tokenizer: PreTrainedTokenizerFast) -> None:
    for alone in ("mask_token", "pad_token"):
        for name, token in tokenizer.special_tokens_map.items():
            if (
                name != alone
                and name in PreTrainedTokenizerFast.SPECIAL_TOKENS_ATTRIBUTES
                and token == getattr(tokenizer, alone)
            ):
                raise UserError(
                    f"the tokenizer of {tokenizer.name_or_path} has {token!r} as {alone} and as {name}, so "
                    f"that one would be taken for the other; give {alone} a token of its own"
                )


def _check_ids(tokenizer: PreTrainedTokenizerFast, architecture: Architecture) -> None:
    rows = architecture.vocab_size
    beyond = {token: number for token, number in tokenizer.get_vocab().items() if number >= rows}
    if not beyond:
        return
    largest = max(beyond.values())
    message = (
        f"the tokenizer of {tokenizer.name_or_path} has ids up to {largest}, but the model's word embedding "
        f"has {rows} rows"
    )
    if not beyond.keys() <= tokenizer.get_added_vocab().keys():
        raise UserError(f"{message}; use the tokenizer that the model was trained with")
    names = sorted(beyond, key=beyond.__getitem__)
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    raise UserError(
        f"{message}: it was not resized after tokens were added ({', '.join(names[:5])}{more}); resize it "
        f"once with: {resizing_command(tokenizer.name_or_path, largest + 1)}, or take the tokens out of the "
        "tokenizer"
    )


def _check_types(
    tokenizer: PreTrainedTokenizerFast, architecture: Architecture, pairs: bool
) -> None:
    # Where there is no table, type 0 is none.
    rows, place = max(architecture.type_vocab_size, 1), tokenizer.name_or_path
    single, pair = token_types(tokenizer)
    if single >= rows:
        raise UserError(
            f"the tokenizer of {place} gives texts the token type {single}, but type_vocab_size of "
            f"config.json is {rows}; use the tokenizer that the model was trained with"
        )
    if pairs and pair >= rows:
        raise UserError(
            f"the tokenizer of {place} gives pairs of texts token types up to {pair}, but type_vocab_size of "
            f"config.json is {rows}, so the model cannot tell them apart; use the tokenizer that the model "
            "was trained with, or, if that was without token types, write "
            '"model_input_names": ["input_ids", "attention_mask"] into tokenizer_config.json'
        )


def token_types(tokenizer: PreTrainedTokenizerFast) -> tuple[int, int]:
    """The largest token type that a tokenizer gives a single text, and a pair of texts."""
    if "token_type_ids" not in tokenizer.model_input_names:
        return 0, 0
    return _template_types(tokenizer)


def leaves_out_types(tokenizer: PreTrainedTokenizerFast, architecture: Architecture) -> bool:
    """Whether pairs come without the token types that the tokenizer's template and the model have for them.

    transformers 4 gave them where tokenizer_config.json does not list its outputs; 5 does not.
    """
    rows, (_, pair) = architecture.type_vocab_size, _template_types(tokenizer)
    return 0 < pair < rows and "token_type_ids" not in tokenizer.model_input_names


def _template_types(tokenizer: PreTrainedTokenizerFast) -> tuple[int, int]:
    text = tokenizer.mask_token or "a"  # Every vocabulary has a token for this text.
    encode = tokenizer.backend_tokenizer.encode
    return max(encode(text).type_ids, default=0), max(encode(text, text).type_ids, default=0)


def resizing_command(directory: str, rows: int) -> str:
    """The line that gives a checkpoint's word embedding more rows; it needs torch."""
    return (
        'python -c "from transformers import AutoModelForMaskedLM as M; '
        f"m = M.from_pretrained({directory!r}); m.resize_token_embeddings({rows}); "
        f'm.save_pretrained({directory!r})"'
    )
