"""Examples: what is learned is the responses with their ends, and nothing else."""

import copy
import csv
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.testing import assert_array_equal
from transformers import PreTrainedTokenizerFast

from das_jax.data.chat import chat
from das_jax.data.corpus import prepare
from das_jax.data.objective import NextToken
from das_jax.data.records import Conversation, conversations
from das_jax.data.roles import GIVEN, OPENS, PADDING, has, ids
from das_jax.data.settings import CSVSource, JSONLSource, ParquetSource
from das_jax.errors import UserError

TURN = "<|{{ m.role }}|>\n"
SAID = "{{ m.content }}<|done|>"
PROMPT = "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
PLAIN = "{{ bos_token }}{% for m in messages %}" + TURN + SAID + "{{ '\n' }}{% endfor %}" + PROMPT
MARKED = PLAIN.replace(
    SAID,
    "{% if m.role == 'assistant' %}{% generation %}" + SAID + "{% endgeneration %}"
    "{% else %}" + SAID + "{% endif %}",
)
FORGETS = PLAIN.replace(SAID, "{% if not loop.last %}once {% endif %}" + SAID)
REFUSES = (
    "{% if messages[0].role != 'user' %}{{ raise_exception('A user begins') }}{% endif %}" + PLAIN
)

TALK = [
    {"role": "user", "content": "which fox?"},
    {"role": "assistant", "content": "the quick one"},
    {"role": "user", "content": "and the dog"},
    {"role": "assistant", "content": " lazy"},
]


def with_template(
    tokenizer: PreTrainedTokenizerFast, template: str | None
) -> PreTrainedTokenizerFast:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = template
    tokenizer.name_or_path = "some/model"
    return tokenizer


def tokens_of(tokenizer: PreTrainedTokenizerFast, messages: list[dict[str, Any]]) -> np.ndarray:
    writer = chat(tokenizer)
    (tokens,) = writer.encode([writer.render(Conversation("a.jsonl, line 3", messages))])
    return tokens


@pytest.mark.parametrize("template", [PLAIN, MARKED])
def test_a_templates_tokens_are_transformers_and_what_the_assistant_says_is_learned(
    template: str, llama_tokenizer: PreTrainedTokenizerFast
):
    tokens = tokens_of(with_template(llama_tokenizer, template), TALK)
    theirs = with_template(llama_tokenizer, MARKED).apply_chat_template(
        TALK, return_dict=True, return_assistant_tokens_mask=True
    )
    assert_array_equal(ids(tokens), theirs["input_ids"])
    assert_array_equal(~has(tokens, GIVEN), np.array(theirs["assistant_masks"], bool))
    learned = ids(tokens[~has(tokens, GIVEN)])
    assert llama_tokenizer.decode(learned) == "the quick one<|done|> lazy<|done|>"
    assert has(tokens, OPENS).tolist() == [True] + [False] * (len(tokens) - 1)


@pytest.mark.parametrize("name", ["gpt2_tokenizer", "llama_tokenizer"])
def test_without_a_template_a_response_follows_its_prompt_in_a_line_of_its_own(name: str, request):
    tokenizer = with_template(request.getfixturevalue(name), None)
    tokens = tokens_of(tokenizer, TALK[:2])
    assert_array_equal(ids(tokens)[:-1], tokenizer("which fox?\nthe quick one").input_ids)
    assert tokenizer.decode(ids(tokens[~has(tokens, GIVEN)])) == "the quick one<end>"


@pytest.mark.parametrize(
    ("template", "messages", "sentence"),
    [
        (REFUSES, TALK[1:], "does not take this conversation (A user begins): mend or drop"),
        (
            FORGETS,
            TALK,
            "writes the beginning of this conversation otherwise when it goes on (message 2)",
        ),
        ("{{ messages[0].content }}", TALK[:2], "shows nothing that the assistant says"),
        ("{% if %}", TALK, "does not take this conversation (Expected an expression"),
        (None, TALK, "has no chat template, so it writes a prompt and a response"),
    ],
)
def test_a_conversation_that_cannot_be_told_apart_is_refused(
    template: str | None, messages: list[dict[str, Any]], sentence: str, gpt2_tokenizer
):
    with pytest.raises(UserError) as error:
        tokens_of(with_template(gpt2_tokenizer, template), messages)
    assert str(error.value).startswith("a.jsonl, line 3: the ")
    assert "some/model " in str(error.value)
    assert sentence in str(error.value)


ROWS = [{"q": f"{'the dog ' * (n % 4)}{n}?", "a": f"fox {n}"} for n in range(40)]
LENGTH = 24


def source(path: Path, rows: list[dict[str, Any]] = ROWS) -> JSONLSource:
    path.write_text("\n".join(map(json.dumps, rows)))
    return JSONLSource(kind="jsonl", path=str(path), prompt="q", response="a")


def test_joined_examples_have_a_chunk_each_and_those_apart_share_it(gpt2_tokenizer, tmp_path: Path):
    long = {"q": "fox " * 3, "a": "dog " * LENGTH}
    hopeless = {"q": "dog " * LENGTH, "a": "fox"}
    rows = source(tmp_path / "a.jsonl", [*ROWS, long, hopeless])
    found = {
        how: prepare(
            rows, gpt2_tokenizer, LENGTH, 0.2, tmp_path, objective="supervised", documents=how
        )
        for how in ("joined", "apart")
    }
    for each in found.values():
        assert each.documents == 41
        assert each.shortened == (
            "2 of 42 examples are longer than a chunk of 24 tokens and were cut; 1 of these, whose prompts "
            "fill it, were left out"
        )
    joined, apart = (np.stack(list(each.train)) for each in found.values())
    assert has(joined, OPENS).sum(axis=1).tolist() == [1] * len(joined)
    assert len(apart) < len(joined)
    assert_array_equal(joined[~has(joined, PADDING)], apart[~has(apart, PADDING)])
    # What is learned of an example is the same in both, and ends with the end of the text.
    drawn = NextToken(apart=True).draw(jax.numpy.asarray(apart), None)
    for row, (labels, weights, numbers) in enumerate(
        zip(drawn.labels, drawn.weights, drawn.text.segments, strict=True)
    ):
        for number in range(1, int(numbers.max()) + 1):
            mine = labels[(weights > 0) & (numbers == number)]
            said = gpt2_tokenizer.decode(np.asarray(mine))
            assert said.startswith(("fox ", "dog ")), (row, said)
            assert said.endswith("<end>") or "dog dog" in said


def test_one_prompt_is_on_one_side_and_every_format_gives_the_same_chunks(
    gpt2_tokenizer, tmp_path: Path
):
    twice = [{"q": row["q"], "a": f"{row['a']} {n}"} for row in ROWS for n in range(2)]
    columns = {name: [row[name] for row in twice] for name in ("q", "a")}
    jsonl = source(tmp_path / "a.jsonl", twice)
    with (tmp_path / "a.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["q", "a"])
        writer.writeheader()
        writer.writerows(twice)
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    messages = [
        [{"role": "user", "content": row["q"]}, {"role": "assistant", "content": row["a"]}]
        for row in twice
    ]
    pq.write_table(pa.table({"talk": messages}), tmp_path / "b.parquet")
    names = {"prompt": "q", "response": "a"}
    sources = [
        jsonl,
        CSVSource(kind="csv", path=str(tmp_path / "a.csv"), **names),
        ParquetSource(kind="parquet", path=str(tmp_path / "a.parquet"), **names),
        ParquetSource(kind="parquet", path=str(tmp_path / "b.parquet"), messages="talk"),
    ]
    found = [
        prepare(each, gpt2_tokenizer, LENGTH, 0.3, tmp_path, objective="supervised")
        for each in sources
    ]
    assert len({each.key for each in found}) == 4
    first = found[0]
    for other in found[1:]:
        assert_array_equal(list(first.train), list(other.train))
        assert_array_equal(list(first.heldout), list(other.heldout))
    prompts = [
        {tuple(chunk[has(chunk, GIVEN)].tolist()) for chunk in chunks}
        for chunks in (first.train, first.heldout)
    ]
    assert not prompts[0] & prompts[1]
    assert len(prompts[0] | prompts[1]) == len(ROWS)


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"q": " ", "a": "b"}, "field 'q' is blank"),
        ({"q": "a", "a": None}, "field 'a' holds null, not a text"),
        ({"q": "a"}, "has no field 'a': it has 'q'; set `response` of this source."),
    ],
)
def test_a_row_that_is_no_example_is_refused(row: dict[str, Any], sentence: str, tmp_path: Path):
    with pytest.raises(UserError, match=r"^\S+a\.jsonl, line 2") as error:
        list(conversations(source(tmp_path / "a.jsonl", [ROWS[0], row])))
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("hello", "is no list of objects with a `role`"),
        ([{"role": "user", "content": "a"}], "has no message of the role assistant"),
    ],
)
def test_messages_that_are_none_are_refused(value: Any, sentence: str, tmp_path: Path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"talk": value}))
    talk = JSONLSource(kind="jsonl", path=str(tmp_path / "a.jsonl"), messages="talk")
    with pytest.raises(UserError, match=r"a\.jsonl, line 1: field 'talk' ") as error:
        list(conversations(talk))
    assert sentence in str(error.value)
