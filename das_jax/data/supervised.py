"""Examples become chunks: conversations of which only what the assistant says is learned.

An example is never cut in two, as the rest of a response means nothing without its prompt. Where documents
are kept apart, as many examples as fit fill a chunk one after the other; where they are joined, a chunk holds
one, as it would read its neighbours' answers otherwise.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import islice
from typing import IO

import numpy as np
from etils import epath

from das_jax import stopping
from das_jax.data.chat import Chat, Rendered
from das_jax.data.layouts import Rows
from das_jax.data.records import Conversation
from das_jax.data.roles import GIVEN, PADDING, has
from das_jax.data.tokenization import TRAIN, Part, Progress, Shares, Stream, split_of

BATCH = 1024


def write_examples(
    conversations: Iterable[Conversation],
    chat: Chat,
    length: int,
    packed: bool,
    shares: Shares,
    prefix: epath.Path,
    progress: Progress | None = None,
) -> dict[str, Stream]:
    """Writes the chunks of examples, a file for every split.

    What stands before the first response decides the split, so that one prompt is on one side. An example
    that is longer than a chunk is cut behind it; if nothing to be learned is left, it is left out.

    Args:
        conversations: Read once.
        chat: Writes them.
        length: T, tokens in a chunk.
        packed: Whether a chunk holds several examples.
        shares: Of the examples, what goes to other splits than `train`.
        prefix: Where the files are written.
        progress: Called after each batch.

    Returns:
        Of every split the chunks, one after the other.
    """
    with ExitStack() as stack:
        rows = {}
        for split in (TRAIN, *shares):
            path = prefix.parent / f"{prefix.name}-{split}.tokens"
            rows[split] = _Packer(path, stack.enter_context(path.open("wb")), chat, length, packed)
        for batch in _encoded(conversations, chat):
            for rendered, tokens in batch:
                rows[split_of(rendered.given, shares)].add(tokens)
            if progress is not None:
                progress(
                    sum(each.documents for each in rows.values()),
                    sum(each.tokens for each in rows.values()),
                )
        return {split: each.finish() for split, each in rows.items()}


def _encoded(
    conversations: Iterable[Conversation], chat: Chat
) -> Iterator[list[tuple[Rendered, np.ndarray]]]:
    """Conversations as texts and as tokens, a batch at a time."""
    waiting = iter(conversations)
    while rendered := [chat.render(each) for each in islice(waiting, BATCH)]:
        stopping.check()
        yield list(zip(rendered, chat.encode(rendered), strict=True))


class _Packer:
    """Puts the examples of a split into chunks, in their order."""

    def __init__(self, path: epath.Path, file: IO[bytes], chat: Chat, length: int, packed: bool):
        self._path, self._file, self._chat = path, file, chat
        self._length, self._packed = length, packed
        self._row: list[np.ndarray] = []
        self.documents = self.tokens = 0
        self._rows = self._predictable = self._unknown = self._cut = self._dropped = 0

    def add(self, tokens: np.ndarray) -> None:
        kept = tokens[: self._length]
        self._cut += len(kept) < len(tokens)
        # Nothing predicts the first token.
        predictable = int(np.count_nonzero(~has(kept[1:], GIVEN)))
        if not predictable:
            self._dropped += 1
            return
        if self._row and (not self._packed or sum(map(len, self._row)) + len(kept) > self._length):
            self._close()
        self._row.append(kept)
        self.documents += 1
        self.tokens += len(kept)
        self._predictable += predictable
        self._unknown += self._chat.encoder.count(kept)[1]

    def _close(self) -> None:
        row = np.full(self._length, self._chat.special.padding | PADDING, "<i4")
        filled = np.concatenate(self._row)
        row[: len(filled)] = filled
        self._file.write(row.tobytes())
        self._rows += 1
        self._row = []

    def finish(self) -> Stream:
        if self._row:
            self._close()
        written = self._rows * self._length
        part = Part(
            str(self._path),
            self.documents,
            written,
            self._predictable,
            self._unknown,
            padding=written - self.tokens,
            cut=self._cut,
            dropped=self._dropped,
        )
        return Stream((part,), Rows())
