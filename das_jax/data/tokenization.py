"""Documents become one long stream of tokens per split, on all cores, in constant memory."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import blake2b, sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Encoding, Tokenizer
from transformers import PreTrainedTokenizerBase

from das_jax.errors import UserError

SPLITS = ("train", "heldout")
BATCH_CHARACTERS = 1_000_000
BATCH_PIECES = 4096
# Longer documents are tokenised in pieces: a token in the tokenizer's memory is a hundred bytes.
PIECE_CHARACTERS = 50_000

Progress = Callable[[int, int], None]
"""Told, again and again, how many documents and tokens are done."""


@dataclass(frozen=True)
class Encoder:
    """A tokenizer as corpora need it: nothing padded, nothing cut, no special tokens from text."""

    backend: Tokenizer
    first: int
    """Opens a chunk: [CLS] or <s>."""
    separator: int
    """Stands between documents and closes a chunk: [SEP] or </s>."""
    padding: int
    fingerprint: str
    """SHA-256 of all of the above."""


def encoder(tokenizer: PreTrainedTokenizerBase) -> Encoder:
    """Prepares a tokenizer for corpora; the tokenizer itself is left as it is.

    Args:
        tokenizer: A fast HuggingFace tokenizer.

    Raises:
        UserError: It is a slow one, or has no token that opens, closes or pads a chunk.
    """
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise UserError(
            f"The tokenizer {tokenizer.name_or_path} has no fast form: save it with a tokenizer.json."
        )
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_padding()
    backend.no_truncation()
    # "[MASK]" written in a document is text, not a mask.
    backend.encode_special_tokens = True
    special = (
        _special(tokenizer, "cls_token", "bos_token"),
        _special(tokenizer, "sep_token", "eos_token"),
        _special(tokenizer, "pad_token"),
    )
    fingerprint = sha256(f"{special} {backend.to_str()}".encode()).hexdigest()
    return Encoder(backend, *special, fingerprint)


def _special(tokenizer: PreTrainedTokenizerBase, *names: str) -> int:
    for name in names:
        if (token := getattr(tokenizer, f"{name}_id")) is not None:
            return int(token)
    raise UserError(
        f"The tokenizer {tokenizer.name_or_path} has no {' and no '.join(names)}, which chunks of text "
        "need: add it to its special tokens."
    )


def is_heldout(document: str, share: float) -> bool:
    """Whether a document is kept away from training; the same text is always on the same side."""
    return int.from_bytes(blake2b(document.encode(), digest_size=8).digest()) < share * 2**64


@dataclass
class Stream:
    """The tokens of one split, document after document, as little int32 in a file."""

    path: Path
    documents: int = 0
    tokens: int = 0


class _Piece(NamedTuple):
    text: str
    split: str
    starts_document: bool


def write_streams(
    documents: Iterable[str],
    encoder: Encoder,
    heldout: float,
    directory: Path,
    progress: Progress | None = None,
) -> dict[str, Stream]:
    """Tokenises documents into one stream per split, with separators between documents.

    Args:
        documents: The texts, read once.
        encoder: The tokenizer.
        heldout: The share of the documents that goes to the split `heldout`.
        directory: Where the streams are written.
        progress: Called after each batch.

    Returns:
        The streams `train` and `heldout`.
    """
    streams = {split: Stream(directory / f"{split}.tokens") for split in SPLITS}
    with ExitStack() as stack:
        outputs = {split: stack.enter_context(streams[split].path.open("wb")) for split in SPLITS}
        for pieces, encodings in _encoded(_batches(_pieces(documents, heldout)), encoder):
            ids: dict[str, list[int]] = {split: [] for split in SPLITS}
            for piece, encoding in zip(pieces, encodings, strict=True):
                stream, tokens = streams[piece.split], ids[piece.split]
                if piece.starts_document:
                    if stream.documents:
                        tokens.append(encoder.separator)
                    stream.documents += 1
                tokens.extend(encoding.ids)
            for split, tokens in ids.items():
                outputs[split].write(np.array(tokens, "<i4").tobytes())
                streams[split].tokens += len(tokens)
            if progress is not None:
                done = streams.values()
                progress(sum(s.documents for s in done), sum(s.tokens for s in done))
    return streams


def _pieces(documents: Iterable[str], heldout: float) -> Iterator[_Piece]:
    for document in documents:
        split = "heldout" if is_heldout(document, heldout) else "train"
        start = 0
        while start < len(document):
            end = start + PIECE_CHARACTERS
            if end < len(document):
                # Before a space, no tokenizer we know sees a difference.
                space = document.rfind(" ", start + 1, end + 1)
                end = space if space != -1 else end
            yield _Piece(document[start:end], split, start == 0)
            start = end


def _batches(pieces: Iterable[_Piece]) -> Iterator[list[_Piece]]:
    batch: list[_Piece] = []
    characters = 0
    for piece in pieces:
        batch.append(piece)
        characters += len(piece.text)
        if characters >= BATCH_CHARACTERS or len(batch) == BATCH_PIECES:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _encoded(
    batches: Iterable[list[_Piece]], encoder: Encoder
) -> Iterator[tuple[list[_Piece], list[Encoding]]]:
    def encode(batch: list[_Piece]) -> list[Encoding]:
        texts = [piece.text for piece in batch]
        return encoder.backend.encode_batch_fast(texts, add_special_tokens=False)

    # The tokenizer uses all cores by itself; the thread lets reading and writing go on meanwhile.
    with ThreadPoolExecutor(max_workers=1) as pool:
        waiting: deque = deque()
        for batch in batches:
            waiting.append((batch, pool.submit(encode, batch)))
            if len(waiting) > 1:
                done, encodings = waiting.popleft()
                yield done, encodings.result()
        for done, encodings in waiting:
            yield done, encodings.result()
