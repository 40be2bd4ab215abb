"""How the documents of a split become chunks: what stands around a document, and around a chunk."""

from typing import NamedTuple, Protocol

import numpy as np

from das_jax.data.roles import GIVEN, OPENS, PADDING, has


class Layout(Protocol):
    """The tokens of a split are written in a row, document after document, and then cut.

    Any chunk can be cut by itself: chunk i holds the tokens from i * (T - frame) on.
    """

    @property
    def lead(self) -> int:
        """Tokens before the first document that no chunk holds."""

    @property
    def around(self) -> int:
        """Tokens that every document has beside those of its text."""

    @property
    def frame(self) -> int:
        """Tokens that every chunk has beside those that it is cut from."""

    def written(self, tokens: np.ndarray, opens: bool, closes: bool) -> np.ndarray:
        """A piece of a document as it is written.

        Args:
            tokens: Of the piece, int32.
            opens: Whether it is the document's first piece.
            closes: Whether it is the last one.
        """

    def pack(self, tokens: np.ndarray, length: int) -> np.ndarray:
        """Cuts a stream of tokens into chunks; the last one is padded.

        Args:
            tokens: int32, of any number.
            length: T, the tokens in a chunk.

        Returns:
            chunks_NxT, int32.
        """


def chunk_count(tokens: int, length: int, frame: int) -> int:
    """How many chunks a stream of tokens gives; a tail less than a quarter full does not count.

    Args:
        tokens: Of the stream.
        length: Tokens in a chunk.
        frame: Of the layout.
    """
    full, tail = divmod(tokens, length - frame)
    return full + (tail > 0 and (full == 0 or tail + frame >= length // 4))


class SpecialTokens(NamedTuple):
    """Of masked models: every chunk is [CLS] ... [SEP], with a [SEP] between documents. Ids:"""

    first: int
    """Opens a chunk: [CLS] or <s>."""
    separator: int
    """Stands between documents and closes a chunk: [SEP] or </s>."""
    padding: int

    @property
    def lead(self) -> int:
        return 1

    @property
    def around(self) -> int:
        return 1

    @property
    def frame(self) -> int:
        return 2

    def written(self, tokens: np.ndarray, opens: bool, closes: bool) -> np.ndarray:
        # Every document begins with a separator, so that parts can follow each other.
        return np.concatenate([np.array([self.separator] * opens, "<i4"), tokens])

    def pack(self, tokens: np.ndarray, length: int) -> np.ndarray:
        bodies = _bodies(tokens, length - self.frame, self.padding)
        tail = len(tokens) - (len(bodies) - 1) * (length - self.frame)
        chunks_NxT = np.full((len(bodies), length), self.padding, np.int32)
        chunks_NxT[:, 0] = self.first
        chunks_NxT[:, 1:-1] = bodies
        chunks_NxT[:-1, -1] = self.separator
        chunks_NxT[-1, 1 + tail] = self.separator
        return chunks_NxT


class DocumentTokens(NamedTuple):
    """Of decoders: every document ends with the separator, and documents follow each other. Ids:

    Where the tokenizer puts a token before a text (Llama 3, Gemma), every document and every chunk begins
    with it, and with one alone: a chunk that begins as a document does holds a token less and is padded.
    """

    first: int | None
    """Opens a document and a chunk, and is never predicted; None for GPT-2 and Qwen."""
    separator: int
    """Ends a document."""

    @property
    def padding(self) -> int:
        """Never read as a token: in a chunk its role says what it is."""
        return self.separator

    @property
    def lead(self) -> int:
        return 0

    @property
    def around(self) -> int:
        return 1 + self.frame

    @property
    def frame(self) -> int:
        return int(self.first is not None)

    def written(self, tokens: np.ndarray, opens: bool, closes: bool) -> np.ndarray:
        before = [] if self.first is None or not opens else [self.first | GIVEN]
        found = np.concatenate(
            [np.array(before, "<i4"), tokens, np.array([self.separator] * closes, "<i4")]
        )
        if opens:
            found[:1] |= OPENS
        return found

    def pack(self, tokens: np.ndarray, length: int) -> np.ndarray:
        padding = self.separator | PADDING
        bodies = _bodies(tokens, length - self.frame, padding)
        if self.first is None:
            return bodies
        chunks_NxT = np.full((len(bodies), length), padding, np.int32)
        begins_N = has(bodies[:, 0], OPENS)
        chunks_NxT[begins_N, :-1] = bodies[begins_N]
        chunks_NxT[~begins_N, 0] = self.first | GIVEN | OPENS
        chunks_NxT[~begins_N, 1:] = bodies[~begins_N]
        return chunks_NxT


class Rows(NamedTuple):
    """Of examples: what is written are chunks already."""

    @property
    def lead(self) -> int:
        return 0

    @property
    def around(self) -> int:
        return 0

    @property
    def frame(self) -> int:
        return 0

    def written(self, tokens: np.ndarray, opens: bool, closes: bool) -> np.ndarray:
        return tokens

    def pack(self, tokens: np.ndarray, length: int) -> np.ndarray:
        return tokens.reshape(-1, length)


def _bodies(tokens: np.ndarray, body: int, padding: int) -> np.ndarray:
    """The tokens in rows, the last one padded, int32."""
    rows = -(-len(tokens) // body)
    padded = np.full(rows * body, padding, np.int32)
    padded[: len(tokens)] = tokens
    return padded.reshape(rows, body)
