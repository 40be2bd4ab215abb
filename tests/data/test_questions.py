"""Texts among which a model chooses: what is asked for, what is only read, every mistake in one sentence."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from das_jax.data.choices import load_choices
from das_jax.data.minimal_pairs import load_pairs
from das_jax.data.questions import Answer, Questions, Writer
from das_jax.data.roles import GIVEN, OPENS, PADDING, has, ids
from das_jax.data.settings import ChoicesSettings, CSVTable, JSONLTable, MinimalPairsSettings
from das_jax.errors import UserError

QUESTIONS = [
    [Answer("the fox jumps", 7, right=False), Answer("the fox runs away", 7, right=True)],
    [Answer("a dog", 0, right=True), Answer("a dog dog dog", 0, right=False)],
]


def asked(row: np.ndarray) -> list[int]:
    """The tokens whose likelihood is asked for."""
    return ids(row[~has(row, GIVEN | PADDING)]).tolist()


def test_a_decoder_is_asked_for_every_token_that_is_not_given(
    gpt2_tokenizer: PreTrainedTokenizerFast, llama_tokenizer: PreTrainedTokenizerFast
) -> None:
    """The first, too: behind what the tokenizer puts there, else behind what ends the text before."""
    for tokenizer, opening in ((gpt2_tokenizer, "<end>"), (llama_tokenizer, "<begin>")):
        found = Writer.of(tokenizer, causal=True, longest=20).write(QUESTIONS, "made")
        for row, answer in zip(found.tokens_RxT, itertools.chain(*QUESTIONS), strict=True):
            plain = tokenizer(answer.text, add_special_tokens=False)["input_ids"]
            begin = tokenizer.convert_tokens_to_ids(opening)
            assert ids(row[~has(row, PADDING)]).tolist() == [begin, *plain]
            assert has(row, OPENS).tolist() == [True] + [False] * (len(row) - 1)
            assert tokenizer.decode(asked(row)) == answer.text[answer.given :]
        assert found.question_R.tolist() == [0, 0, 1, 1]
        assert found.right_R.tolist() == [False, True, True, False]
        assert found.bytes_R.tolist() == [5, 9, 5, 13]


def test_a_masked_model_is_asked_for_all_but_what_its_template_puts_around(
    bert_tokenizer: PreTrainedTokenizerFast,
) -> None:
    whole = [[Answer(answer.text, 0, answer.right) for answer in each] for each in QUESTIONS]
    found = Writer.of(bert_tokenizer, causal=False, longest=20).write(whole, "made")
    for row, answer in zip(found.tokens_RxT, itertools.chain(*whole), strict=True):
        plain = bert_tokenizer(answer.text)["input_ids"]
        assert ids(row[~has(row, PADDING)]).tolist() == plain
        assert asked(row) == plain[1:-1]
    assert set(ids(found.tokens_RxT[has(found.tokens_RxT, PADDING)])) == {0}


def test_what_is_only_read_loses_its_beginning_and_what_is_asked_for_nothing(
    llama_tokenizer: PreTrainedTokenizerFast,
) -> None:
    context = "the dog runs and the fox jumps"
    question = [Answer(f"{context} away", len(context), right=True), Answer("away", 0, right=False)]
    writer = Writer.of(llama_tokenizer, causal=True, longest=30)
    whole, _ = writer.write([question], "made").tokens_RxT
    tokens = ids(whole[~has(whole, PADDING)]).tolist()
    short = Writer(writer.encoder, True, longest=len(asked(whole)) + 3)
    cut, _ = short.write([question], "made").tokens_RxT
    assert ids(cut).tolist() == [tokens[0], *tokens[-(len(cut) - 1) :]]
    assert asked(cut) == asked(whole)
    with pytest.raises(UserError, match=r"made: ' away' takes \d tokens, but the model has 1 pos"):
        Writer(writer.encoder, True, longest=1).write([question], "made")


def test_the_right_text_must_beat_every_other() -> None:
    """An equal score is no knowledge."""
    questions = Questions(
        tokens_RxT=np.zeros((7, 1), np.int32),
        question_R=np.array([0, 0, 0, 1, 1, 2, 2]),
        right_R=np.array([0, 1, 0, 1, 0, 1, 0], bool),
        bytes_R=np.ones(7, int),
        key="",
        unknown=0.0,
    )
    scores = np.array([-3.0, -1.0, -2.0, -4.0, -3.0, -5.0, -5.0])
    assert questions.accuracy(scores) == pytest.approx(1 / 3)
    assert questions.accuracy(np.array([-3.0, -1.0, -0.5, -2.0, -3.0, -4.0, -5.0])) == 2 / 3


def pairs(path: Path, *records: dict[str, Any], **more: Any) -> MinimalPairsSettings:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return MinimalPairsSettings(name="grammar", path=str(path), **more)


def test_minimal_pairs_as_blimp_has_them(
    tmp_path: Path, llama_tokenizer: PreTrainedTokenizerFast
) -> None:
    """The fields of BLiMP are the usual ones, and others may be named."""
    writer = Writer.of(llama_tokenizer, causal=True, longest=20)
    one = {"sentence_good": "the dog runs", "sentence_bad": "the dog run", "UID": "agreement"}
    found = load_pairs(pairs(tmp_path / "a.jsonl", one, one), writer)
    assert [llama_tokenizer.decode(asked(row)) for row in found.tokens_RxT] == 2 * [
        "the dog runs",
        "the dog run",
    ]
    assert (found.total, found.right_R.tolist()) == (2, [True, False, True, False])
    other = {"yes": "the dog runs", "no": "the dog run"}
    again = load_pairs(pairs(tmp_path / "b.jsonl", other, other, good="yes", bad="no"), writer)
    assert again.key == found.key
    swapped = load_pairs(pairs(tmp_path / "c.jsonl", other, other, good="no", bad="yes"), writer)
    assert swapped.key != found.key


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{"sentence_good": "a"}], "line 1, has no field 'sentence_bad'"),
        ([{"sentence_good": "a", "sentence_bad": " "}], "line 1: field 'sentence_bad' is empty"),
        ([{"sentence_good": "a", "sentence_bad": 3}], "field 'sentence_bad' holds int"),
        ([{"sentence_good": "a", "sentence_bad": "a"}], "line 1: both sentences are 'a'"),
        ([], "has no pairs"),
        (
            [{"sentence_good": "the dog " * 20, "sentence_bad": "a"}],
            "evaluation.minimal_pairs, grammar: 'the dog the dog",
        ),
    ],
)
def test_pairs_that_need_mending(
    records: list[dict[str, Any]],
    message: str,
    tmp_path: Path,
    llama_tokenizer: PreTrainedTokenizerFast,
) -> None:
    writer = Writer.of(llama_tokenizer, causal=True, longest=20)
    with pytest.raises(UserError) as raised:
        load_pairs(pairs(tmp_path / "pairs.jsonl", *records), writer)
    assert message in str(raised.value)


def choices(path: Path, *records: dict[str, Any], **more: Any) -> ChoicesSettings:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    table = JSONLTable(kind="jsonl", path=str(path))
    return ChoicesSettings(name="exam", table=table, **more)


def test_choices_in_a_list_or_in_columns_and_answers_by_text_or_by_place(
    tmp_path: Path, llama_tokenizer: PreTrainedTokenizerFast
) -> None:
    writer = Writer.of(llama_tokenizer, causal=True, longest=30)
    record = {"context": "the fox", "choices": ["jumps", "runs away", "learns"]}
    expected = load_choices(
        choices(tmp_path / "a.jsonl", {**record, "answer": "runs away"}), writer, tmp_path
    )
    assert [llama_tokenizer.decode(asked(row)) for row in expected.tokens_RxT] == [
        " jumps",
        " runs away",
        " learns",
    ]
    assert expected.right_R.tolist() == [False, True, False]
    assert expected.bytes_R.tolist() == [5, 9, 6]
    for answer in (1, "1", " runs away "):
        same = choices(tmp_path / "b.jsonl", {**record, "answer": answer})
        assert load_choices(same, writer, tmp_path).key == expected.key
    (tmp_path / "c.csv").write_text("q,a,b,c,right\nthe fox,jumps,runs away,learns,1\n")
    named = ChoicesSettings(
        name="exam",
        table=CSVTable(kind="csv", path=str(tmp_path / "c.csv")),
        context="q",
        choices=("a", "b", "c"),
        answer="right",
    )
    assert load_choices(named, writer, tmp_path).key == expected.key
    # Of numbers, the text of a choice goes before a place.
    numbers = {"context": "a", "choices": ["2", "0", "1"], "answer": 1}
    found = load_choices(choices(tmp_path / "d.jsonl", numbers), writer, tmp_path)
    assert found.right_R.tolist() == [False, False, True]
    close = choices(tmp_path / "e.jsonl", {**record, "answer": 1}, between="\n")
    row, *_ = load_choices(close, writer, tmp_path).tokens_RxT
    assert llama_tokenizer.decode(asked(row)) == "\njumps"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answer": 3}, "the answer is '3', neither one of the choices 'x', 'y' nor the place of"),
        ({"answer": -1}, "the answer is '-1'"),
        ({"answer": True}, "the answer is 'True'"),
        ({"choices": ["x"]}, "the choices are 'x'; give two at least"),
        ({"choices": ["x", "x"]}, "give two at least, each once"),
        ({"choices": "x"}, "column 'choices' is no list of choices"),
        ({"choices": ["x", 3]}, "holds int"),
        ({"context": ""}, "column 'context' is empty"),
    ],
)
def test_questions_that_need_mending(
    changes: dict[str, Any],
    message: str,
    tmp_path: Path,
    llama_tokenizer: PreTrainedTokenizerFast,
) -> None:
    record = {"context": "a", "choices": ["x", "y"], "answer": 0, **changes}
    writer = Writer.of(llama_tokenizer, causal=True, longest=30)
    with pytest.raises(UserError, match=r"evaluation.choices, exam: .*line 1") as raised:
        load_choices(choices(tmp_path / "a.jsonl", record), writer, tmp_path)
    assert message in str(raised.value)


def test_words_in_a_script_that_the_tokenizer_does_not_know(
    tmp_path: Path, bert_tokenizer: PreTrainedTokenizerFast
) -> None:
    writer = Writer.of(bert_tokenizer, causal=False, longest=20)
    unknown = {"sentence_good": "ภาษาไทย", "sentence_bad": "ไทย"}
    known = {"sentence_good": "the", "sentence_bad": "a"}
    assert load_pairs(pairs(tmp_path / "a.jsonl", unknown, known), writer).unknown == 0.5
    with pytest.raises(UserError, match="knows no word of the texts"):
        load_pairs(pairs(tmp_path / "b.jsonl", unknown), writer)
