"""Questions that are answered by likelihood: of some texts, which one does a model find the most likely?"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from das_jax.data.layouts import DocumentTokens
from das_jax.data.roles import GIVEN, OPENS, PADDING
from das_jax.data.tokenization import Encoder, encoder
from das_jax.errors import UserError

# Part of every key: raise it when the same input would give other rows.
FORMAT = 1


class Questions(NamedTuple):
    """Texts, question by question, one of each question the right one.

    Attributes:
      tokens_RxT: ids with roles, of decoders and of masked models; what has none is what is asked for. int32.
      question_R: which question a text belongs to, from 0, rising.
      right_R: whether it is the right one.
      bytes_R: the length in UTF-8 of what is asked for, without spaces around it.
      key: a hash of all that the scores depend on but the model.
      unknown: the share of the tokens that are words unknown to the tokenizer.
    """

    tokens_RxT: np.ndarray
    question_R: np.ndarray
    right_R: np.ndarray
    bytes_R: np.ndarray
    key: str
    unknown: float

    @property
    def total(self) -> int:
        """Of the questions."""
        return int(self.question_R[-1]) + 1

    def accuracy(self, score_R: np.ndarray) -> float:
        """The share of the questions whose right text has a higher score than every other."""
        best_Q = np.full(self.total, -np.inf)
        np.maximum.at(best_Q, self.question_R[~self.right_R], score_R[~self.right_R])
        return float(np.mean(score_R[self.right_R] > best_Q))


class Answer(NamedTuple):
    """A text that may be right.

    Attributes:
      text: the whole of it.
      given: how many of its characters are only read; the likelihood of the others is asked for.
      right: whether it is the right one.
    """

    text: str
    given: int
    right: bool


@dataclass(frozen=True)
class Writer:
    """Writes answers as a model reads them.

    Attributes:
      encoder: the tokenizer.
      causal: whether the model is a decoder.
      longest: tokens of a text, at most.
    """

    encoder: Encoder
    causal: bool
    longest: int

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, causal: bool, longest: int) -> "Writer":
        """Of a model.

        Raises:
          UserError: the tokenizer lacks what such models need.
        """
        return cls(encoder(tokenizer, "all", causal), causal, longest)

    def write(self, questions: Sequence[Sequence[Answer]], where: str) -> Questions:
        """The rows of some questions.

        A decoder predicts a text's first token, too: behind what its tokenizer puts before texts or, if that
        is nothing, behind the token that ends them, as in training. What is only read loses its beginning
        where the whole is too long for the model.

        Args:
          questions: their answers, one of each right.
          where: which questions these are, for people.

        Raises:
          UserError: what is asked for is too long for the model, or the tokenizer knows none of its words.
        """
        answers = [answer for question in questions for answer in question]
        rows = self._rows(answers)
        for row, answer in zip(rows, answers, strict=True):
            if len(row) > self.longest:
                text = answer.text[answer.given :][:80]
                raise UserError(
                    f"{where}: {text!r} takes {len(row)} tokens, but the model has {self.longest} positions "
                    "for it; shorten it"
                )
        tokens_RxT = np.full(
            (len(rows), max(map(len, rows))), self.encoder.special.padding | PADDING, np.int32
        )
        for tokens_T, row in zip(tokens_RxT, rows, strict=True):
            tokens_T[: len(row)] = row
        predictable, unknown = self.encoder.count(tokens_RxT[(tokens_RxT & (GIVEN | PADDING)) == 0])
        if unknown and not predictable:
            raise UserError(
                f"{where}: the tokenizer knows no word of the texts; give some in the model's language and "
                "script"
            )
        question_R = np.repeat(np.arange(len(questions)), [len(each) for each in questions])
        right_R = np.array([answer.right for answer in answers])
        asked = (answer.text[answer.given :].strip() for answer in answers)
        bytes_R = np.array([len(text.encode()) for text in asked])
        hashed = sha256(repr((FORMAT, tokens_RxT.shape)).encode())
        for array in (tokens_RxT, question_R, right_R, bytes_R):
            hashed.update(array.tobytes())
        share = unknown / max(1, unknown + predictable)
        return Questions(tokens_RxT, question_R, right_R, bytes_R, hashed.hexdigest(), share)

    def _rows(self, answers: Sequence[Answer]) -> list[np.ndarray]:
        """Ids with roles of every text, as long as it is, what is only read cut to fit."""
        found = self.encoder.backend.encode_batch(
            [answer.text for answer in answers], add_special_tokens=not self.causal
        )
        rows = []
        for answer, encoding in zip(answers, found, strict=True):
            if self.causal:
                # A token that belongs to both is asked for.
                given = np.array([end <= answer.given for _, end in encoding.offsets], bool)
            else:
                given = np.array(encoding.special_tokens_mask, bool)
            row = np.array(encoding.ids, np.int32) | np.where(given, GIVEN, 0).astype(np.int32)
            rows.append(self._opened(row, int(given.sum())) if self.causal else row)
        return rows

    def _opened(self, row: np.ndarray, given: int) -> np.ndarray:
        """A decoder's row behind what opens it."""
        special = self.encoder.special
        assert isinstance(special, DocumentTokens)
        first, separator = special
        opening = (separator if first is None else first) | GIVEN | OPENS
        cut = min(given, max(0, 1 + len(row) - self.longest))
        return np.concatenate([np.array([opening], np.int32), row[cut:]])
