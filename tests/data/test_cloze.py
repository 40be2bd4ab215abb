import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from das_jax.data.cloze import ClozeSettings, load_completions, load_facts
from das_jax.data.questions import Writer
from das_jax.data.roles import GIVEN, PADDING, has, ids
from das_jax.errors import UserError


def settings(path: Path, *facts: dict[str, Any], **more: Any) -> ClozeSettings:
    path.write_text("".join(json.dumps(fact) + "\n" for fact in facts))
    return ClozeSettings(name="facts", path=str(path), **more)


def test_the_blank_becomes_the_mask_and_the_answer_one_token(
    tmp_path: Path, bert_tokenizer: Any
) -> None:
    words = [word for word in bert_tokenizer.get_vocab() if word.isalpha() and len(word) > 1]
    one, two = sorted(words)[:2]
    facts = load_facts(
        settings(
            tmp_path / "facts.jsonl",
            {"q": f"{one} ___ {one} {one}", "a": two},
            {"q": f"___ {one}", "a": one},
            {"q": f"___ {one}", "a": f"{one} {two}"},
            sentence="q",
            answer="a",
            blank="___",
            knowledge="new",
        ),
        bert_tokenizer,
    )
    assert facts.left_out == 1
    np.testing.assert_array_equal(
        facts.tokens_NxT[np.arange(2), facts.position_N], [bert_tokenizer.mask_token_id] * 2
    )
    assert bert_tokenizer.convert_ids_to_tokens(facts.answer_N.tolist()) == [two, one]
    assert facts.tokens_NxT[1, -1] == bert_tokenizer.pad_token_id


def test_after_a_space_an_answer_is_the_token_with_the_space(
    tmp_path: Path, roberta_tokenizer: Any
) -> None:
    vocabulary = roberta_tokenizer.get_vocab()
    word = next(
        token[1:] for token in sorted(vocabulary) if token[0] == "Ġ" and token[1:].isalpha()
    )
    facts = load_facts(
        settings(tmp_path / "facts.jsonl", {"sentence": f"a [MASK] {word}", "answer": word}),
        roberta_tokenizer,
    )
    assert facts.answer_N.tolist() == [vocabulary["Ġ" + word]]


def test_with_the_answer_at_the_mask_the_tokens_are_those_of_the_real_sentence(
    tmp_path: Path, bert_tokenizer: Any, roberta_tokenizer: Any, unigram_tokenizer: Any
) -> None:
    """However a mask is written into a text; and a part of a longer word is no answer."""
    facts = [
        {"sentence": "the [MASK] brown dog", "answer": "quick"},
        {"sentence": "fox [MASK] dog", "answer": "the"},
        {"sentence": "over the [MASK].", "answer": "dog"},
        {"sentence": "one [MASK]s", "answer": "dog"},
        {"sentence": "one un[MASK]", "answer": "the"},
        {"sentence": "one [MASK]", "answer": "quick fox"},
    ]
    for tokenizer in (bert_tokenizer, roberta_tokenizer, unigram_tokenizer):
        found = load_facts(settings(tmp_path / "facts.jsonl", *facts), tokenizer)
        reals = [tokenizer(f["sentence"].replace("[MASK]", f["answer"])).input_ids for f in facts]
        kept = []
        for tokens, place, answer in zip(
            found.tokens_NxT, found.position_N, found.answer_N, strict=True
        ):
            unmasked = tokens[tokens != tokenizer.pad_token_id]
            assert unmasked[place] == tokenizer.mask_token_id
            unmasked[place] = answer
            kept.append(reals.index(unmasked.tolist()))
        # The byte-level vocabulary lacks ` quick`, and makes `u`, `n` and `the` of the other word.
        assert kept == ([1, 2, 4] if tokenizer is roberta_tokenizer else [0, 1, 2])
        assert found.left_out == len(facts) - len(kept)


def test_facts_in_a_script_that_the_tokenizer_does_not_know(
    tmp_path: Path, bert_tokenizer: Any
) -> None:
    facts = [{"sentence": f"{word} [MASK]", "answer": "the"} for word in ("ภาษาไทย", "language")]
    found = load_facts(settings(tmp_path / "facts.jsonl", *facts), bert_tokenizer)
    assert found.unknown == 1 / len(bert_tokenizer.tokenize("ภาษาไทย language"))
    with pytest.raises(UserError, match="knows no word of the sentences"):
        load_facts(settings(tmp_path / "facts.jsonl", facts[0]), bert_tokenizer)


@pytest.mark.parametrize(
    ("fact", "message"),
    [
        ({"sentence": "no blank", "answer": "x"}, "line 1: the sentence has 0 blanks"),
        ({"sentence": "[MASK] [MASK]", "answer": "x"}, "line 1: the sentence has 2 blanks"),
        ({"sentence": "[MASK]"}, "line 1, has no field 'answer'"),
        ({"sentence": "[MASK]", "answer": 3}, "field 'answer' holds int"),
        ({"sentence": "[MASK]", "answer": "qq ww"}, "no fact whose answer is one token"),
    ],
)
def test_facts_that_need_mending(
    fact: dict[str, Any], message: str, tmp_path: Path, bert_tokenizer: Any
) -> None:
    with pytest.raises(UserError, match="facts") as raised:
        load_facts(settings(tmp_path / "facts.jsonl", fact), bert_tokenizer)
    assert message in str(raised.value)


def test_a_decoder_chooses_between_sentences_or_goes_on_where_the_blank_is_last(
    tmp_path: Path, llama_tokenizer: Any
) -> None:
    writer = Writer.of(llama_tokenizer, causal=True, longest=30)
    facts = [
        {"sentence": "the [MASK] runs away", "answer": "fox", "rest": ["dog", "fox"]},
        {
            "sentence": "the fox jumps over the [MASK] .",
            "answer": "lazy dog",
            "rest": ["lazy dog", "fox"],
        },
    ]
    chosen = load_completions(settings(tmp_path / "facts.jsonl", *facts, candidates="rest"), writer)

    def asked(row: np.ndarray) -> str:
        return llama_tokenizer.decode(ids(row[~has(row, GIVEN | PADDING)]))

    assert not chosen.free
    assert [asked(row) for row in chosen.questions.tokens_RxT] == [
        "the dog runs away",
        "the fox runs away",
        "the fox jumps over the lazy dog .",
        "the fox jumps over the fox .",
    ]
    assert chosen.questions.right_R.tolist() == [False, True, True, False]
    free = load_completions(settings(tmp_path / "facts.jsonl", *facts), writer)
    assert (free.free, free.left_out, free.questions.total) == (True, 1, 1)
    (row,) = free.questions.tokens_RxT
    assert asked(row) == " lazy dog"
    assert (
        llama_tokenizer.decode(ids(row), skip_special_tokens=True)
        == "the fox jumps over the lazy dog"
    )


@pytest.mark.parametrize(
    ("fact", "message"),
    [
        ({"answer": "fox"}, "line 1, has no field 'rest'"),
        ({"answer": "fox", "rest": "fox"}, "field 'rest' is no list of texts"),
        ({"answer": "fox", "rest": ["dog", "cat"]}, "must have the answer 'fox' and others"),
        ({"answer": "fox", "rest": ["fox"]}, "must have the answer 'fox' and others"),
        ({"answer": "fox", "rest": ["fox", "dog", "dog"]}, "each once"),
    ],
)
def test_candidates_that_need_mending(
    fact: dict[str, Any], message: str, tmp_path: Path, llama_tokenizer: Any
) -> None:
    writer = Writer.of(llama_tokenizer, causal=True, longest=30)
    given = settings(tmp_path / "facts.jsonl", {"sentence": "a [MASK]", **fact}, candidates="rest")
    with pytest.raises(UserError) as raised:
        load_completions(given, writer)
    assert message in str(raised.value)


def test_facts_whose_blanks_a_decoder_cannot_go_on_to(tmp_path: Path, llama_tokenizer: Any) -> None:
    writer = Writer.of(llama_tokenizer, causal=True, longest=30)
    fact = {"sentence": "the [MASK] runs", "answer": "fox"}
    with pytest.raises(UserError, match=r"no fact whose blank comes last \(1 left out\)"):
        load_completions(settings(tmp_path / "facts.jsonl", fact), writer)
