"""Whether a corpus has enough in it to be learned and measured."""

from collections.abc import Mapping

from das_jax.data.tokenization import TRAIN, Shares, Stream
from das_jax.errors import UserError


def check_documents(streams: Mapping[str, Stream], label: str, length: int, shares: Shares) -> None:
    """Checks a corpus of documents.

    Args:
        streams: The tokens of every split.
        label: Of the source, for people.
        length: Tokens in a chunk.
        shares: Of the documents, what goes to other splits than `train`.

    Raises:
        UserError: It is empty, too short, has nothing to predict, or nothing was held out.
    """
    train = streams[TRAIN]
    body = length - train.layout.frame
    documents, tokens, words, unknown, predictable = (
        sum(getattr(stream, what) for stream in streams.values())
        for what in ("documents", "tokens", "words", "unknown", "predictable")
    )
    lower = " or ".join(f"data.{split}, which is {share}," for split, share in shares.items())
    if documents == 0:
        raise UserError(
            f"The corpus {label} is empty: give it at least one document that is not blank."
        )
    if 0 < words == unknown:
        raise UserError(
            f"Every token of the corpus {label} is unknown to the tokenizer: give a model that knows its "
            "language and script."
        )
    if words > 0 and predictable == 0:
        raise UserError(
            f"The corpus {label} has nothing but special tokens and words unknown to the tokenizer, so "
            "that there is nothing to predict: give it other text, or another model."
        )
    if tokens < body:
        raise UserError(
            f"The corpus {label} has {tokens} tokens, fewer than one chunk of {length}: give it more text or "
            "lower data.length."
        )
    if train.tokens < body:
        raise UserError(
            f"The corpus {label} has only {train.tokens} tokens left for training, fewer than one chunk of "
            f"{length}: give it more documents, or lower {lower} or data.length."
        )
    for split, share in shares.items():
        if streams[split].tokens == 0:
            purpose = "" if split == "heldout" else f" for {split}"
            raise UserError(
                f"None of the {documents} documents of the corpus {label} was held out{purpose}: give it "
                f"more documents or raise data.{split}, which is {share}."
            )
    for split, stream in streams.items():
        if stream.predictable == 0:
            raise UserError(
                f"The corpus {label} has nothing to predict in its {split} documents, only special tokens "
                "and words unknown to the tokenizer: give it more documents, or another model."
            )


def check_examples(streams: Mapping[str, Stream], label: str, length: int, shares: Shares) -> None:
    """Does so with a corpus of examples; of these one is enough, however short."""
    documents = sum(stream.documents for stream in streams.values())
    if documents == 0:
        dropped = sum(stream.dropped for stream in streams.values())
        why = (
            f"has no prompt that is shorter than a chunk of {length}: raise data.length"
            if dropped
            else "is empty: give it at least one example"
        )
        raise UserError(f"The corpus {label} {why}.")
    for split in (TRAIN, *shares):
        if streams[split].documents == 0:
            wanted = "is left for training" if split == TRAIN else f"came to {split}"
            keys = " or ".join(f"data.{each}, which is {share}" for each, share in shares.items())
            raise UserError(
                f"None of the {documents} examples of the corpus {label} {wanted}: give it more prompts, or "
                f"change {keys}."
            )
