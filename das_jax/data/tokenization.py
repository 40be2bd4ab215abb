"""Documents become streams of tokens, one per split, on all cores, in constant memory."""

import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from hashlib import blake2b, sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np
from etils import epath
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerBase

from das_jax.data.layouts import DocumentTokens, Layout, SpecialTokens
from das_jax.data.roles import ids
from das_jax.data.settings import Recognised
from das_jax.data.special_tokens import recognising
from das_jax.data.words import encode_texts, encode_words, splits_at_spaces
from das_jax.errors import UserError

BATCH_CHARACTERS = 4_000_000
BATCH_PIECES = 1 << 16
# Longer documents are tokenised in pieces: a token in the tokenizer's memory is a hundred bytes.
PIECE_CHARACTERS = 50_000
# A text with more unknown words than this is another language than the tokenizer's, or another script.
USUAL_UNKNOWN = 0.05

Progress = Callable[[int, int], None]
"""Told, again and again, how many documents and tokens are done."""


@dataclass(frozen=True)
class Encoder:
    """A tokenizer as corpora need it: nothing padded, nothing cut."""

    backend: Tokenizer
    special: SpecialTokens | DocumentTokens
    """What chunks need beside the tokens of texts."""
    unknown: int | None = None
    """The id of words that the tokenizer does not know."""
    never_masked: tuple[int, ...] = ()
    """Ids that are never predicted."""

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all it does."""
        recognised = "" if self.backend.encode_special_tokens else " all"
        content = f"{tuple(self.special)} {self.backend.to_str()}{recognised}"
        return sha256(content.encode()).hexdigest()

    @cached_property
    def _kinds(self) -> np.ndarray:
        """0 for ids that can be predicted, 1 for those that cannot, 2 for the unknown word's."""
        known = {*self.backend.get_vocab().values(), *self.never_masked}
        kinds = np.zeros(max(known.union(filter(None, self.special))) + 1, np.uint8)
        kinds[list(self.never_masked)] = 1
        if self.unknown is not None:
            kinds[self.unknown] = 2
        return kinds

    def count(self, tokens_X: np.ndarray) -> tuple[int, int]:
        """How many tokens can be predicted, and how many are unknown words."""
        predictable, _, unknown = np.bincount(self._kinds[ids(tokens_X.ravel())], minlength=3)
        return int(predictable), int(unknown)

    @cached_property
    def encode(self) -> Callable[[list[str]], list[np.ndarray]]:
        """Token ids of texts, int32."""
        encode = encode_words if splits_at_spaces(self.backend) else encode_texts
        return partial(encode, self.backend)


def encoder(
    tokenizer: PreTrainedTokenizerBase, special_tokens: Recognised = "markers", causal: bool = False
) -> Encoder:
    """Prepares a tokenizer for corpora; the tokenizer itself is left as it is.

    Args:
        tokenizer: A fast HuggingFace tokenizer.
        special_tokens: Which of its added tokens it recognises in a text.
        causal: Whether the chunks are for a decoder.

    Raises:
        UserError: It is a slow one, or has no token that opens, closes or pads a chunk; for a decoder, none
            that ends a document, or several that open one.
    """
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise UserError(
            f"The tokenizer {tokenizer.name_or_path} has no fast form: save it with a tokenizer.json."
        )
    backend = recognising(tokenizer, special_tokens)
    if causal:
        first = opening_token(tokenizer, backend)
        documents = DocumentTokens(first, ending_token(tokenizer))
        # GPT-2 calls the token that ends a text that of unknown words, too.
        unknown = None if tokenizer.unk_token_id in documents else tokenizer.unk_token_id
        return Encoder(backend, documents, unknown, () if first is None else (first,))
    special = SpecialTokens(
        _special(tokenizer, "cls_token", "bos_token"),
        _special(tokenizer, "sep_token", "eos_token"),
        _special(tokenizer, "pad_token"),
    )
    return Encoder(
        backend, special, tokenizer.unk_token_id, tuple(sorted(tokenizer.all_special_ids))
    )


def opening_token(tokenizer: PreTrainedTokenizerBase, backend: Tokenizer) -> int | None:
    """The id that a decoder's tokenizer puts before a text; None if it puts none.

    The post-processor of tokenizer.json says so or, with older files, `add_bos_token` of
    tokenizer_config.json.

    Raises:
        UserError: It puts several.
    """
    text = Tokenizer(models.WordLevel({"a": 0})).encode("a")
    found = text if backend.post_processor is None else backend.post_process(text)
    before = found.ids[: found.special_tokens_mask.index(0)]
    if len(before) > 1:
        raise UserError(
            f"The tokenizer {tokenizer.name_or_path} puts {len(before)} tokens before a text "
            f"({', '.join(tokenizer.convert_ids_to_tokens(before))}), and chunks begin with one: correct the "
            "post_processor of its tokenizer.json."
        )
    if not before and getattr(tokenizer, "stored_config", {}).get("add_bos_token"):
        return _special(tokenizer, "bos_token")
    return before[0] if before else None


def ending_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id that ends a decoder's text: its tokenizer's, else the first that config.json names.

    Raises:
        UserError: There is none.
    """
    if tokenizer.eos_token_id is not None:
        return int(tokenizer.eos_token_id)
    try:
        said = json.loads((Path(tokenizer.name_or_path) / "config.json").read_bytes())[
            "eos_token_id"
        ]
        return int(said[0] if isinstance(said, list) else said)
    except (OSError, ValueError, LookupError, TypeError):
        return _special(tokenizer, "eos_token")


def _special(tokenizer: PreTrainedTokenizerBase, *names: str) -> int:
    for name in names:
        if (token := getattr(tokenizer, f"{name}_id")) is not None:
            return int(token)
    raise UserError(
        f"The tokenizer {tokenizer.name_or_path} has no {' and no '.join(names)}, which chunks of text "
        "need: add it to its special tokens."
    )


TRAIN = "train"

Shares = Mapping[str, float]
"""The splits that are kept away from training, and what share of the documents each has."""


def split_of(document: str, shares: Shares) -> str:
    """The split that a document belongs to; the same text is always in the same one.

    A further split takes its documents from training, so the ones before it stay what they are.
    """
    place = int.from_bytes(blake2b(document.encode(), digest_size=8).digest())
    end = 0.0
    for split, share in shares.items():
        end += share
        if place < end * 2**64:
            return split
    return TRAIN


@dataclass(frozen=True)
class Part:
    """The tokens of some consecutive documents of a split, as little int32 in a file; parts can follow each
    other.
    """

    path: str
    documents: int
    tokens: int
    """What stands around documents included."""
    predictable: int = 0
    """Tokens that can be predicted."""
    unknown: int = 0
    """Words that the tokenizer does not know."""
    padding: int = 0
    """Of the tokens, those that only fill up chunks."""
    cut: int = 0
    """Examples that were longer than a chunk."""
    dropped: int = 0
    """Of these, the ones of whose responses nothing was left."""


@dataclass(frozen=True)
class Stream:
    """The tokens of one split, document after document."""

    parts: tuple[Part, ...]
    layout: Layout

    @property
    def documents(self) -> int:
        return sum(part.documents for part in self.parts)

    @property
    def tokens(self) -> int:
        return max(0, sum(part.tokens for part in self.parts) - self.layout.lead)

    @property
    def words(self) -> int:
        """Tokens of the texts alone."""
        around = self.documents * self.layout.around
        return sum(part.tokens - part.padding for part in self.parts) - around

    @property
    def padding(self) -> int:
        return sum(part.padding for part in self.parts)

    @property
    def cut(self) -> int:
        return sum(part.cut for part in self.parts)

    @property
    def dropped(self) -> int:
        return sum(part.dropped for part in self.parts)

    @property
    def predictable(self) -> int:
        return sum(part.predictable for part in self.parts)

    @property
    def unknown(self) -> int:
        return sum(part.unknown for part in self.parts)

    def read(self, start: int, stop: int) -> np.ndarray:
        """The tokens from `start` up to `stop`, int32."""
        found, offset = [], -self.layout.lead
        for part in self.parts:
            first, last = max(start - offset, 0), min(stop - offset, part.tokens)
            if first < last:
                found.append(_read_tokens(part.path, first, last - first))
            offset += part.tokens
        return np.concatenate([np.empty(0, "<i4"), *found])


def _read_tokens(path: str, start: int, count: int) -> np.ndarray:
    # Not a memory map: its pages would count as this process's memory.
    with epath.Path(path).open("rb") as stream:
        stream.seek(4 * start)
        return np.frombuffer(stream.read(4 * count), "<i4")


class _Piece(NamedTuple):
    text: str
    split: str
    starts_document: bool
    ends_document: bool


def write_parts(
    documents: Iterable[str],
    encoder: Encoder,
    shares: Shares,
    prefix: epath.Path,
    progress: Progress | None = None,
) -> dict[str, Part]:
    """Tokenises documents into one file per split.

    Args:
        documents: The texts, read once.
        encoder: The tokenizer.
        shares: Of the documents, what goes to other splits than `train`.
        prefix: Where the files are written: PREFIX-train.tokens, PREFIX-heldout.tokens, ...
        progress: Called after each batch.

    Returns:
        The part of every split.
    """
    splits = (TRAIN, *shares)
    paths = {split: prefix.parent / f"{prefix.name}-{split}.tokens" for split in splits}
    done, size, predictable, unknown = (dict.fromkeys(splits, 0) for _ in range(4))
    with ExitStack() as stack:
        outputs = {split: stack.enter_context(paths[split].open("wb")) for split in splits}
        for pieces, tokens in _encoded(_batches(_pieces(documents, shares)), encoder):
            rows: dict[str, list[np.ndarray]] = {split: [] for split in splits}
            for piece, found in zip(pieces, tokens, strict=True):
                done[piece.split] += piece.starts_document
                written = encoder.special.written(found, piece.starts_document, piece.ends_document)
                rows[piece.split].append(written)
            for split, arrays in rows.items():
                joined = np.concatenate([np.empty(0, "<i4"), *arrays])
                outputs[split].write(joined.tobytes())
                size[split] += len(joined)
                counted = encoder.count(joined)
                predictable[split] += counted[0]
                unknown[split] += counted[1]
            if progress is not None:
                progress(sum(done.values()), sum(size.values()))
    return {
        split: Part(str(paths[split]), done[split], size[split], predictable[split], unknown[split])
        for split in splits
    }


def _pieces(documents: Iterable[str], shares: Shares) -> Iterator[_Piece]:
    for document in documents:
        split = split_of(document, shares)
        start = 0
        while start < len(document):
            end = start + PIECE_CHARACTERS
            if end < len(document):
                # Before a space, no tokenizer we know sees a difference.
                space = document.rfind(" ", start + 1, end + 1)
                end = space if space != -1 else end
            yield _Piece(document[start:end], split, start == 0, end >= len(document))
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
) -> Iterator[tuple[list[_Piece], Sequence[np.ndarray]]]:
    workers = len(os.sched_getaffinity(0))
    # Tokenizers and arrays let go of Python's lock; reading and writing go on meanwhile.
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque = deque()
        for batch in batches:
            waiting.append((batch, pool.submit(encoder.encode, [piece.text for piece in batch])))
            if len(waiting) > workers:
                done, tokens = waiting.popleft()
                yield done, tokens.result()
        for done, tokens in waiting:
            yield done, tokens.result()
