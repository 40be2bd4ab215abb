"""Texts that begin with their year, which is read and never predicted."""

import datetime
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from das_jax.data.corpus import prepare
from das_jax.data.masking import Masking
from das_jax.data.settings import JSONLSource, JSONLTable, TaskSettings
from das_jax.data.sources import documents, fingerprint, identity
from das_jax.data.span_masking import SpanMasking
from das_jax.data.tasks import load_task
from das_jax.data.time_prefix import prefix_tokens, time_prefix
from das_jax.data.tokenization import encoder
from das_jax.data.word_marks import word_marks
from das_jax.errors import UserError


def write(path: Path, *records: dict[str, Any]) -> JSONLSource:
    path.write_text("\n".join(map(json.dumps, records)))
    return JSONLSource(kind="jsonl", path=str(path), date="when")


@dataclass(frozen=True)
class Undated:
    """The settings of a source as they were before there were dates: what was prepared then is found."""

    kind: str = "jsonl"
    path: str = ""
    field: str = "text"


@pytest.mark.parametrize(
    ("value", "year"),
    [
        (2021, 2021),
        (2021.0, 2021),
        ("1999-05-03T10:00", 1999),
        (b"2021", 2021),
        (datetime.date(2021, 5, 3), 2021),
        (None, None),
        ("", None),
        (float("nan"), None),
    ],
)
def test_a_date_gives_its_year(value: Any, year: int | None) -> None:
    expected = "" if year is None else f"year: {year} text: "
    assert time_prefix(value, "when", "here") == expected


@pytest.mark.parametrize("value", [20210503, 1.5e9, True, "May 2021", "21"])
def test_what_begins_with_no_year_is_refused(value: Any) -> None:
    with pytest.raises(UserError, match=r"line 3: field 'when' holds .* which begins with no year"):
        time_prefix(value, "when", "line 3")


def test_a_source_with_dates(tmp_path: Path) -> None:
    source = write(
        tmp_path / "a.jsonl",
        {"text": "  one", "when": 2021},
        {"text": "two", "when": None},
        {"text": " ", "when": 2021},
    )
    assert [*documents(source, tmp_path)] == ["year: 2021 text:   one", "two"]
    plain = JSONLSource(kind="jsonl", path=source.path)
    assert fingerprint(plain) != fingerprint(source)
    assert identity(plain, "x") == identity(Undated(), "x")
    write(tmp_path / "b.jsonl", {"text": "three"})
    undated = JSONLSource(kind="jsonl", path=str(tmp_path / "b.jsonl"), date="when")
    with pytest.raises(
        UserError, match="has no field 'when': it has 'text'; set `date` of this source"
    ):
        [*documents(undated, tmp_path)]


def test_prefixes_are_never_masked_wherever_chunks_are_cut(
    tmp_path: Path, roberta_tokenizer: Any
) -> None:
    """Of documents so long that cuts go through every place of a prefix; which tokens are one's is known by
    what stands around them in the stream.
    """
    tokenizer = roberta_tokenizer
    words = "the quick brown fox jumps over a lazy dog and runs away"
    rows = [
        {"text": words[: 3 + i % 40].strip() + f" {words}" * (i % 3), "when": 1990 + i % 40}
        for i in range(400)
    ]
    corpus = prepare(write(tmp_path / "a.jsonl", *rows), tokenizer, 16, 0.05, tmp_path / "cache")
    chunks = corpus.train.__getitems__(range(len(corpus.train) - 1))
    enc = encoder(tokenizer)
    pattern = prefix_tokens(enc)
    stream = chunks[:, 1:-1].reshape(-1)
    expected = np.zeros(len(stream), bool)
    lengths = set()
    for start in np.flatnonzero(stream == enc.special.separator):
        for stop in range(start + 1, min(start + 1 + pattern.longest, len(stream)) + 1):
            spelled = enc.backend.decode(stream[start + 1 : stop].tolist()).strip()
            if spelled.startswith("year:") and spelled.endswith("text:"):
                expected[start + 1 : stop] = True
                lengths.add(stop - start - 1)
                break
    assert expected.mean() > 0.1
    assert max(lengths) <= pattern.longest
    expected = expected.reshape(len(chunks), -1)
    cuts = expected[1:, 0] & expected[:-1, -1]
    assert cuts.sum() > 20
    for masking in (
        Masking(3, tuple(tokenizer.all_special_ids), len(tokenizer), 0.5, pattern),
        SpanMasking(
            3,
            tuple(tokenizer.all_special_ids),
            len(tokenizer),
            0.5,
            pattern,
            marks=word_marks(tokenizer),
        ),
    ):
        untouched = np.asarray(masking.untouched(jnp.asarray(chunks)))[:, 1:-1]
        special = np.isin(chunks[:, 1:-1], masking.special_tokens)
        assert (untouched | ~expected).all()
        assert (untouched & ~expected & ~special).mean() < 0.01
        keys = jax.random.split(jax.random.key(0), len(chunks))
        masked = jax.jit(masking.corrupt)(jnp.asarray(chunks), keys)
        changed = np.asarray(masked.tokens != chunks)[:, 1:-1]
        assert changed.any()
        assert not (changed & expected).any()
        np.testing.assert_array_equal(
            masked.weights.sum(1), masking.num_predictions(jnp.asarray(chunks))
        )


def test_a_task_may_have_dates(tmp_path: Path, roberta_tokenizer: Any) -> None:
    for name, text in (("train", "the fox"), ("test", "a dog")):
        rows = [{"text": text, "when": 2021, "label": each} for each in "ab"]
        write(tmp_path / f"{name}.jsonl", *rows)
    tables = {
        name: JSONLTable(kind="jsonl", path=str(tmp_path / f"{name}.jsonl"))
        for name in ("train", "test")
    }
    plain = load_task(TaskSettings(name="t", **tables), roberta_tokenizer, tmp_path)
    dated = load_task(TaskSettings(name="t", date="when", **tables), roberta_tokenizer, tmp_path)
    assert dated.train_texts[0] == "year: 2021 text: the fox"
    assert plain.train_texts[0] == "the fox"
    assert plain.key != dated.key
