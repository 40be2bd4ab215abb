"""Labelled tables become examples: tokens, classes, keys, and every mistake in one sentence."""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, normalizers, processors
from transformers import PreTrainedTokenizerFast

from das_jax.data.roles import GIVEN, OPENS, PADDING, has, ids
from das_jax.data.tables import CSVTable, DemoTable, JSONLTable
from das_jax.data.tasks import Sizes, Task, TaskSettings, load_task
from das_jax.errors import UserError

TRAIN = [
    {"text": "the quick brown fox", "label": "fox"},
    {"text": "the lazy dog", "label": "dog"},
    {"text": "the fox jumps over the dog", "label": "fox"},
]
TEST = [{"text": "a lazy dog", "label": "dog"}, {"text": "the fox", "label": "fox"}]


def write(path: Path, rows: list[dict[str, Any]]) -> JSONLTable:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return JSONLTable(kind="jsonl", path=str(path))


Load = Callable[..., Task]


@pytest.fixture
def tokenizer(bert_tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """A BERT's: [CLS] a [SEP] b [SEP], the second text and its separator of type 1; it may be changed."""
    backend = Tokenizer.from_str(bert_tokenizer.backend_tokenizer.to_str())
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


@pytest.fixture
def load(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Load:
    """`load(train=ROWS, test=ROWS, validation=ROWS, **settings)`."""

    def load(train: Any = TRAIN, test: Any = TEST, validation: Any = None, **more: Any) -> Task:
        tables = {"train": train, "test": test, "validation": validation}
        written = {
            name: write(tmp_path / f"{name}.jsonl", rows) if isinstance(rows, list) else rows
            for name, rows in tables.items()
        }
        settings = TaskSettings(**{"name": "animals", "length": 16, **written, **more})
        return load_task(settings, tokenizer, tmp_path)

    return load


def test_tokens_are_the_tokenizers_own_and_labels_are_places_among_the_sorted_classes(
    load: Load, tokenizer: PreTrainedTokenizerFast
):
    task = load(validation=TEST[:1])
    assert task.classes == ("dog", "fox")
    assert task.train.labels_N.tolist() == [1, 0, 1]
    assert task.test.labels_N.tolist() == [0, 1]
    assert task.validation is not None
    assert task.validation.labels_N.tolist() == [0]
    wanted = tokenizer(
        [row["text"] for row in TRAIN], padding="max_length", truncation=True, max_length=16
    )
    np.testing.assert_array_equal(task.train.tokens_NxT, wanted["input_ids"])
    assert {array.dtype for array in (*task.train, *task.test)} == {np.dtype(np.int32)}
    assert task.train.types_NxT.shape == task.train.tokens_NxT.shape == (3, 16)
    assert not task.train.types_NxT.any()
    assert task.train_texts == [row["text"] for row in TRAIN]
    assert task.test_texts == [row["text"] for row in TEST]


def test_the_tokenizers_padding_and_truncation_stay_as_they_were(
    load: Load, tokenizer: PreTrainedTokenizerFast
):
    tokenizer.backend_tokenizer.enable_truncation(7)
    tokenizer.backend_tokenizer.enable_padding(length=9)
    before = tokenizer.backend_tokenizer.to_str()
    load()
    assert tokenizer.backend_tokenizer.to_str() == before


def test_a_long_text_is_cut(load: Load):
    task = load(test=[{"text": "dog " * 50, "label": "dog"}])
    (tokens,) = task.test.tokens_NxT.tolist()
    assert (tokens[0], tokens[-1], 0 in tokens) == (2, 3, False)


PAIRS = [
    {"aspect": "fox", "sentence": "the quick brown fox", "polarity": "+"},
    {"aspect": "dog", "sentence": "the dog " * 20, "polarity": "-"},
]
COLUMNS = {"text": "aspect", "pair": "sentence", "label": "polarity"}


def test_of_a_pair_the_second_text_has_its_own_type_and_the_longer_is_cut(
    load: Load, tokenizer: PreTrainedTokenizerFast
):
    task = load(PAIRS, PAIRS, **COLUMNS)
    wanted = tokenizer(
        [row["aspect"] for row in PAIRS],
        [row["sentence"].strip() for row in PAIRS],
        padding="max_length",
        truncation="longest_first",
        max_length=16,
    )
    np.testing.assert_array_equal(task.train.tokens_NxT, wanted["input_ids"])
    np.testing.assert_array_equal(task.train.types_NxT, wanted["token_type_ids"])
    assert task.train.types_NxT.max() == 1
    assert task.train_texts[0] == "fox the quick brown fox"


def test_a_tokenizer_without_token_types_gives_zeros(
    load: Load, tokenizer: PreTrainedTokenizerFast
):
    with_types = load(PAIRS, PAIRS, **COLUMNS)
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    without = load(PAIRS, PAIRS, **COLUMNS)
    np.testing.assert_array_equal(without.train.tokens_NxT, with_types.train.tokens_NxT)
    assert not without.train.types_NxT.any()
    assert without.key != with_types.key


def test_whole_numbers_are_sorted_by_value(load: Load):
    rows = [{"text": "a fox", "label": label} for label in (10, 9, 2, -1)]
    task = load(rows, rows)
    assert task.classes == ("-1", "2", "9", "10")
    assert task.train.labels_N.tolist() == [3, 2, 1, 0]


def test_more_rows_than_are_tokenised_at_once(load: Load, monkeypatch: pytest.MonkeyPatch):
    whole = load()
    monkeypatch.setattr("das_jax.data.tasks.BATCH_TEXTS", 2)
    np.testing.assert_array_equal(load().train.tokens_NxT, whole.train.tokens_NxT)


def test_promised_sizes(load: Load):
    assert load(sizes=Sizes(train=3, test=2, classes=2)).classes == ("dog", "fox")
    with pytest.raises(
        UserError, match=r"\{train: 3, test: 2, classes: 2\}, .* \{train: 4, test: 2,"
    ):
        load(sizes=Sizes(train=4, test=2, classes=6))


def test_classes_that_training_does_not_know_if_that_is_meant(load: Load):
    test = [{"text": "a cat", "label": "cat"}]
    task = load(test=test, unseen_classes=True, sizes=Sizes(train=3, test=1, classes=3))
    assert task.classes == ("cat", "dog", "fox")
    assert task.test.labels_N.tolist() == [0]


# Bad input: each has a sentence that names task, file and line.


def refused(load: Load, **changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        load(**changes)
    sentence = str(caught.value)
    assert sentence.startswith("End task animals: ")
    assert "\n" not in sentence
    return sentence


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (
            {"label": "fox"},
            r"train.jsonl, line 2, has no column 'text': it has 'label'; set `text`",
        ),
        ({"text": "a fox"}, r"line 2, has no column 'label': it has 'text'; set `label`"),
        ({"text": " \n", "label": "fox"}, r"line 2: column 'text' is empty"),
        ({"text": None, "label": "fox"}, r"line 2: field 'text' holds null, not a text"),
        ({"text": "a", "label": None}, r"line 2: column 'label' is empty"),
        ({"text": "a", "label": " "}, r"line 2: column 'label' is empty"),
        ({"text": "a", "label": True}, r"line 2: column 'label' holds bool, neither a text nor a"),
        ({"text": "a", "label": 1.0}, r"line 2: column 'label' holds float, neither"),
        ({"text": "a", "label": ["fox"]}, r"line 2: column 'label' holds list, neither"),
        ({"text": "a", "label": 1}, r"line 2: the label is 1, but 'fox' in .*, line 1; make all"),
    ],
)
def test_a_bad_row(load: Load, row: dict[str, Any], sentence: str):
    assert re.search(sentence, refused(load, train=[TRAIN[0], row]))


def test_a_missing_or_empty_second_text(load: Load):
    said = refused(load, pair="aspect")
    assert "has no column 'aspect': it has 'text', 'label'; set `pair` of this task." in said
    empty = [{**row, "aspect": ""} for row in TRAIN]
    assert "line 1: column 'aspect' is empty" in refused(load, pair="aspect", train=empty)


@pytest.mark.parametrize("split", ["test", "validation"])
@pytest.mark.parametrize("label", ["cat", 1])
def test_a_label_that_training_does_not_know(load: Load, split: str, label: str | int):
    rows = [*TEST, {"text": "a cat", "label": label}]
    said = refused(load, **{split: rows})
    assert f"{split}.jsonl, line 3: no training example has the label {label!r}" in said
    assert "they have 'dog', 'fox'." in said


def test_special_tokens_in_a_text_are_those_of_the_exported_tokenizer(
    load: Load, tokenizer: PreTrainedTokenizerFast
):
    text = "fox [SEP] runs"
    tokens = load(train=[{"text": text, "label": "fox"}, *TRAIN]).train.tokens_NxT[0]
    assert tokens[tokens != tokenizer.pad_token_id].tolist() == tokenizer(text).input_ids
    assert tokens.tolist().count(3) == 2


def test_texts_of_words_that_the_tokenizer_does_not_know(
    load: Load, tokenizer: PreTrainedTokenizerFast
):
    tokenizer.unk_token = "[UNK]"
    unknown = [{"text": "ภาษาไทย 中文", "label": label} for label in ("dog", "fox")]
    assert "the tokenizer knows no word of `test`" in refused(load, test=unknown)
    assert load().notes == ()
    words = len(tokenizer.tokenize(" ".join(row["text"] for row in [*TRAIN, *unknown])))
    (note,) = load(train=[*TRAIN, *unknown]).notes
    assert f": {6 / words:.1%} of the tokens of `train` are words" in note


def test_one_class_is_no_task(load: Load):
    assert "every training example has the label 'fox'" in refused(load, train=TRAIN[:1])


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_an_empty_table(load: Load, split: str):
    assert f"the table `{split}` has no rows" in refused(load, **{split: []})


def test_trouble_with_a_file_names_the_task(load: Load):
    table = CSVTable(kind="csv", path="/nonexistent/a.csv")
    assert "No file matches /nonexistent/a.csv" in refused(load, test=table)


# Keys: what the numbers depend on, and nothing else.


def test_the_key_depends_on_what_the_scores_depend_on(
    load: Load, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
):
    more = [*TEST, {"text": "the dog", "label": "dog"}]
    dated = {"train": [{**row, "year": 2021} for row in TRAIN]}
    dated["test"] = [{**row, "year": 2021} for row in TEST]
    changes: list[dict[str, Any]] = [
        {},
        dict(dated),
        {**dated, "date": "year"},
        {"train": more},
        {"test": more},
        {"validation": more},
        {"validation": more, "metric": "accuracy"},
        {"text": "label"},
        {"pair": "label"},
        {"unseen_classes": True},
        {"length": 17},
        {"epochs": 6},
        {"batch_size": 8},
        {"learning_rate": 1e-4},
    ]
    keys = [load(**change).key for change in changes]
    assert len(set(keys)) == len(changes)
    same: list[dict[str, Any]] = [
        {},
        {"name": "other"},
        {"domain": "zoo"},
        {"metric": "accuracy"},  # It only chooses the epoch, by the validation set.
        {"sizes": Sizes(train=3, test=2, classes=2)},
        {"train": write(tmp_path / "moved.jsonl", TRAIN)},
    ]
    assert {load(**change).key for change in same} == {keys[0]}
    hashed_or_not = {name for change in changes + same for name in change}
    settings = {field.name for field in dataclasses.fields(TaskSettings)}
    assert hashed_or_not == settings - {"label"}, "a new setting belongs into one of the lists"
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    assert load().key not in keys


@pytest.mark.network
def test_a_demo_task(demo_cache: Path, bert_tokenizer: PreTrainedTokenizerFast):
    tables = {
        split: DemoTable(kind="demo", name="reviews_fresh", split=split)
        for split in ("train", "test")
    }
    sizes = Sizes(train=1200, test=800, classes=2)
    settings = TaskSettings(name="reviews", length=32, sizes=sizes, **tables)
    task = load_task(settings, bert_tokenizer, demo_cache)
    assert task.classes == ("fresh", "rotten")
    assert task.train.tokens_NxT.shape == (1200, 32)


@pytest.mark.parametrize("label", ["nan", "NaN", "NAN", "null", "<NA>", " nan "])
def test_a_label_that_stands_for_a_missing_one(load: Load, tmp_path: Path, label: str):
    (tmp_path / "a.csv").write_text(f"text,label\na fox,fox\na dog,{label}\n")
    said = rf"animals: .*a\.csv, line 3: column 'label' holds '{label.strip()}', .* missing value"
    with pytest.raises(UserError, match=said):
        load(train=CSVTable(kind="csv", path=str(tmp_path / "a.csv")))


@pytest.mark.parametrize("label", ["NaN", "null"])
def test_a_json_label_that_is_none(load: Load, tmp_path: Path, label: str):
    rows = f'{{"text": "a fox", "label": 1}}\n{{"text": "a dog", "label": {label}}}\n'
    (tmp_path / "a.jsonl").write_text(rows)
    with pytest.raises(UserError, match=r"a\.jsonl, line 2: column 'label' is empty"):
        load(train=JSONLTable(kind="jsonl", path=str(tmp_path / "a.jsonl")))


def test_none_and_na_are_classes(load: Load):
    rows = [{"text": f"a {label} fox", "label": label} for label in ("none", "NA", "N/A")]
    assert load(train=rows, test=rows[:1]).classes == ("N/A", "NA", "none")


def linked(path: Path) -> str:
    path.with_name("link.jsonl").symlink_to(path)
    return str(path.with_name("link.jsonl"))


@pytest.mark.parametrize("other", [str, linked, lambda path: f"{path.parent}/*.jsonl"])
def test_training_and_test_rows_of_one_file(load: Load, tmp_path: Path, other: Callable):
    table = write(tmp_path / "rows.jsonl", TRAIN)
    again = JSONLTable(kind="jsonl", path=other(tmp_path / "rows.jsonl"))
    for train, test in ((table, again), (again, table)):
        with pytest.raises(UserError, match=r"animals: `train` and `test` both read .*\.jsonl"):
            load(train=train, test=test)


def test_training_and_test_rows_of_one_split(load: Load):
    table = DemoTable(kind="demo", name="acl_roles", split="test")
    with pytest.raises(UserError, match="both read acl_roles, split test"):
        load(train=table, test=table)


def test_texts_in_two_tables_are_counted(load: Load):
    seen = [{"text": TRAIN[0]["text"], "label": "dog"}, *TEST]
    task = load(test=seen, validation=TRAIN[:1])
    assert task.notes == (
        "end task animals: 1 of 3 test texts (33%) are training texts too",
        "end task animals: 1 of 1 validation texts (100%) are training texts too",
        "end task animals: 1 of 1 validation texts (100%) are test texts too",
    )
    assert load().notes == ()
    pairs = [{"text": "fox", "pair": text, "label": text} for text in ("a", "b")]
    others = [{"text": "fox", "pair": "c", "label": "a"}]
    assert load(train=pairs, test=others, pair="pair").notes == ()


def test_a_decoder_reads_what_its_tokenizer_makes_of_a_text_with_padding_behind_it(
    tmp_path: Path,
    gpt2_tokenizer: PreTrainedTokenizerFast,
    llama_tokenizer: PreTrainedTokenizerFast,
):
    """What ends texts also fills up rows, so where a text ends is said by roles alone."""
    rows = [
        {"a": "the fox<end>", "b": "a lazy dog jumps", "label": 0},
        {"a": "dog", "b": "fox " * 20, "label": 1},
        {"a": "the dog " * 20, "b": "the fox runs away. " * 20, "label": 1},
    ]
    tables = {
        "train": write(tmp_path / "train.jsonl", rows),
        "test": write(tmp_path / "test.jsonl", rows),
    }
    single = TaskSettings(name="animals", length=16, text="a", **tables)
    pairs = dataclasses.replace(single, pair="b")
    for tokenizer, lead in ((gpt2_tokenizer, 0), (llama_tokenizer, 1)):
        found = load_task(single, tokenizer, tmp_path, causal=True)
        tokens_NxT = found.train.tokens_NxT
        assert not found.train.types_NxT.any()
        for row, tokens in zip(rows, tokens_NxT, strict=True):
            wanted = tokenizer(str(row["a"]).strip())["input_ids"][:16]
            real = ids(tokens[~has(tokens, PADDING)])
            assert real.tolist() == wanted
        assert ids(tokens_NxT[0]).tolist()[-10:] == [tokenizer.eos_token_id] * 10
        assert has(tokens_NxT, GIVEN | OPENS).sum() == lead * len(rows)

        joined = load_task(pairs, tokenizer, tmp_path, causal=True).train.tokens_NxT
        kept = [ids(tokens[~has(tokens, PADDING)]).tolist() for tokens in joined]
        assert kept[0] == tokenizer("the fox<end>\na lazy dog jumps")["input_ids"]
        # Of the longer text the end is cut, of equally long ones half of each.
        whole = tokenizer("dog\n" + "fox " * 20)["input_ids"]
        assert kept[1] == whole[:16]
        first, second = tokenizer.decode(kept[2][lead:]).split("\n")
        assert "the dog the dog".startswith(first[:15])
        assert second.startswith("the fox runs")
    masked = dataclasses.replace(single, length=12)
    assert load_task(masked, llama_tokenizer, tmp_path, causal=True).key != found.key
