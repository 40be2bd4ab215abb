"""Facts as sentences with a blank, in the manner of LAMA (Petroni et al., 2019)."""

import json
from hashlib import sha256
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerFast

from das_jax.data import files
from das_jax.data.settings import ClozeSettings
from das_jax.errors import UserError


class Facts(NamedTuple):
    """A set of facts, tokenised.

    Attributes:
      tokens_NxT: sentences, the mask token at the blank, padded to the longest.
      position_N: where the mask token is.
      answer_N: the token that belongs there.
      left_out: facts whose answer is not one token of this tokenizer, so that no prediction could be right.
      key: a hash of all that the score depends on but the model.
    """

    tokens_NxT: np.ndarray
    position_N: np.ndarray
    answer_N: np.ndarray
    left_out: int
    key: str


def load_facts(settings: ClozeSettings, tokenizer: PreTrainedTokenizerFast) -> Facts:
    """Reads a set of facts.

    Raises:
      UserError: a file is missing or damaged, a sentence has not one blank, or no answer is one token.
    """
    sentences, answers, total, left_out = [], [], sha256(), 0
    for where, record in files.jsonl_records(settings.path):
        sentence = _text(record, settings.sentence, where)
        answer = _text(record, settings.answer, where).strip()
        before, *after = sentence.split(settings.blank)
        if len(after) != 1:
            raise UserError(
                f"{where}: the sentence has {len(after)} blanks {settings.blank!r}; it must have one "
                f"(evaluation.cloze, {settings.name})"
            )
        total.update(json.dumps([sentence, answer]).encode())
        # Where a space stands before the blank, a word that follows a space is meant.
        space = " " if before.endswith(" ") else ""
        tokens = tokenizer.encode(space + answer, add_special_tokens=False)
        if len(tokens) != 1 or tokens[0] == tokenizer.unk_token_id:
            left_out += 1
            continue
        sentences.append(tokenizer.encode(before + str(tokenizer.mask_token) + after[0]))
        answers.append(tokens[0])
    if not sentences:
        raise UserError(
            f"{settings.path} has no fact whose answer is one token ({left_out} left out); "
            f"give others (evaluation.cloze, {settings.name})"
        )
    longest = max(map(len, sentences))
    tokens_NxT = np.full((len(sentences), longest), tokenizer.pad_token_id, np.int32)
    for row, sentence_tokens in zip(tokens_NxT, sentences, strict=True):
        row[: len(sentence_tokens)] = sentence_tokens
    return Facts(
        tokens_NxT,
        np.argmax(tokens_NxT == tokenizer.mask_token_id, axis=1).astype(np.int32),
        np.asarray(answers, np.int32),
        left_out,
        sha256(total.digest() + tokens_NxT.tobytes()).hexdigest(),
    )


def _text(record: dict[str, Any], field: str, where: str) -> str:
    if field not in record:
        raise UserError(
            f"{where}, has no field {field!r}: it has {files.quoted(record)}; set `sentence` and `answer` "
            "of these facts."
        )
    return files.checked_text(record[field], field, where)
