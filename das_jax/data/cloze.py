"""Facts as sentences with a blank, in the manner of LAMA (Petroni et al., 2019)."""

import json
from collections.abc import Iterator
from hashlib import sha256
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerFast

from das_jax.data import files
from das_jax.data.questions import Answer, Questions, Writer
from das_jax.data.settings import ClozeSettings
from das_jax.errors import UserError


class _Fact(NamedTuple):
    where: str
    before: str
    answer: str
    after: str
    record: dict[str, Any]


class Facts(NamedTuple):
    """A set of facts, tokenised for a masked model.

    Attributes:
      tokens_NxT: sentences, the mask token at the blank, padded to the longest.
      position_N: where the mask token is.
      answer_N: the token that belongs there.
      left_out: facts whose sentence, with the answer in it, is not the masked one with one known token at
        the mask, so that no prediction could be right.
      key: a hash of all that the score depends on but the model.
      unknown: the share of the sentences' tokens that are words unknown to the tokenizer.
    """

    tokens_NxT: np.ndarray
    position_N: np.ndarray
    answer_N: np.ndarray
    left_out: int
    key: str
    unknown: float = 0.0


def load_facts(settings: ClozeSettings, tokenizer: PreTrainedTokenizerFast) -> Facts:
    """Reads a set of facts for a masked model.

    Raises:
      UserError: a file is missing or damaged, a sentence has not one blank, or no answer is one token.
    """
    sentences, answers, total, left_out = [], [], sha256(), 0
    for fact in _facts(settings):
        sentence = settings.blank.join((fact.before, fact.after))
        total.update(json.dumps([sentence, fact.answer]).encode())
        found = _masked(fact.before, fact.answer, fact.after, tokenizer)
        if found is None:
            left_out += 1
            continue
        sentences.append(found[0])
        answers.append(found[1])
    if not sentences:
        raise UserError(
            f"{settings.path} has no fact whose answer is one token in its sentence ({left_out} left out); "
            f"give others (evaluation.cloze, {settings.name})"
        )
    words = np.array([token for sentence in sentences for token in sentence])
    words = words[~np.isin(words, [*set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}])]
    unknown = float(np.mean(words == tokenizer.unk_token_id)) if len(words) else 0.0
    if unknown == 1:
        raise UserError(
            f"{settings.path}: the tokenizer knows no word of the sentences; give facts in the model's "
            f"language and script (evaluation.cloze, {settings.name})"
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
        unknown,
    )


class Completions(NamedTuple):
    """A set of facts, tokenised for a decoder.

    Attributes:
      questions: a row for every candidate; or one for every fact, asked for the answer alone.
      free: whether the decoder is to find the answer by itself, without candidates.
      left_out: facts without candidates whose blank does not come last.
    """

    questions: Questions
    free: bool
    left_out: int


def load_completions(settings: ClozeSettings, writer: Writer) -> Completions:
    """Reads a set of facts for a decoder: whole sentences with every candidate or, without candidates, the
    beginnings of sentences whose blank comes last.

    Raises:
      UserError: a file is missing or damaged, a sentence has not one blank or not the answer among its
        candidates, or every blank is followed by words.
    """
    questions, left_out, of = [], 0, f"evaluation.cloze, {settings.name}"
    for fact in _facts(settings):
        if settings.candidates is not None:
            questions.append(
                [
                    Answer(fact.before + each + fact.after, 0, each == fact.answer)
                    for each in _candidates(fact, settings.candidates)
                ]
            )
        elif any(letter.isalnum() for letter in fact.after):
            left_out += 1
        else:
            questions.append([Answer(fact.before + fact.answer, len(fact.before), right=True)])
    if not questions:
        raise UserError(
            f"{settings.path} has no fact whose blank comes last ({left_out} left out), and a decoder "
            f"completes only those; name a field of candidates (evaluation.cloze, {settings.name})"
        )
    return Completions(writer.write(questions, of), settings.candidates is None, left_out)


def _candidates(fact: _Fact, field: str) -> list[str]:
    if field not in fact.record:
        raise UserError(
            f"{fact.where}, has no field {field!r}: it has {files.quoted(fact.record)}; set `candidates` of "
            "these facts."
        )
    found = fact.record[field]
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise UserError(f"{fact.where}: field {field!r} is no list of texts; make it one.")
    found = [each.strip() for each in found]
    if fact.answer not in found or len(set(found)) < max(2, len(found)):
        raise UserError(
            f"{fact.where}: field {field!r} must have the answer {fact.answer!r} and others, each once; it "
            f"has {files.quoted(found)}."
        )
    return found


def _facts(settings: ClozeSettings) -> Iterator[_Fact]:
    for where, record in files.jsonl_records(settings.path):
        sentence = _text(record, settings.sentence, where)
        answer = _text(record, settings.answer, where).strip()
        before, *after = sentence.split(settings.blank)
        if len(after) != 1:
            raise UserError(
                f"{where}: the sentence has {len(after)} blanks {settings.blank!r}; it must have one "
                f"(evaluation.cloze, {settings.name})"
            )
        yield _Fact(where, before, answer, after[0], record)


def _masked(
    before: str, answer: str, after: str, tokenizer: PreTrainedTokenizerFast
) -> tuple[list[int], int] | None:
    """The tokens of a sentence with the mask at its blank, and the answer's; None if it is not one token.

    They are those of the real sentence but for the mask, as in training: as text, a mask may take a space
    too few or leave one too many.
    """
    sentence, mask = before + answer + after, tokenizer.mask_token_id
    real = tokenizer(sentence, return_offsets_mapping=True)
    start, end = len(before), len(before) + len(answer)
    places = [i for i, (a, b) in enumerate(real["offset_mapping"]) if a < end and b > start]
    if len(places) != 1 or _covered(sentence, real["offset_mapping"][places[0]]) != answer:
        return None
    tokens = list(real["input_ids"])
    answered, tokens[places[0]] = tokens[places[0]], mask
    if answered in (mask, tokenizer.unk_token_id) or tokens.count(mask) != 1:
        return None
    # A part of a word is an answer only where the rest of the word does not give it away.
    within_word = before[-1:].isalnum() or after[:1].isalnum()
    if within_word and tokenizer.encode(before + str(tokenizer.mask_token) + after) != tokens:
        return None
    return tokens, answered


def _covered(sentence: str, offsets: tuple[int, int]) -> str:
    return sentence[slice(*offsets)].strip()


def _text(record: dict[str, Any], field: str, where: str) -> str:
    if field not in record:
        raise UserError(
            f"{where}, has no field {field!r}: it has {files.quoted(record)}; set `sentence` and `answer` "
            "of these facts."
        )
    return files.checked_text(record[field], field, where)
