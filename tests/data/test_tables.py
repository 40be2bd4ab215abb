"""Reading rows with named columns: every format, every bad input, and what makes two tables the same."""

import csv
import gzip
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import given
from hypothesis import strategies as st

from das_jax.data.tables import (
    CSVTable,
    DemoTable,
    HuggingFaceTable,
    JSONLTable,
    Table,
    TFDSTable,
    fingerprint,
    rows,
)
from das_jax.errors import UserError
from tests.data.conftest import COMPRESSIONS


def read(table: Table) -> list[tuple[str, dict[str, Any]]]:
    return list(rows(table, Path("/nonexistent")))


def csv_table(path: Path, **settings: str) -> CSVTable:
    return CSVTable(kind="csv", path=str(path), **settings)


def jsonl_table(path: Path) -> JSONLTable:
    return JSONLTable(kind="jsonl", path=str(path))


def test_jsonl_rows_have_a_place_and_any_values(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a", "label": 1}\n\n{"text": "b", "label": null}\n')
    assert read(jsonl_table(path)) == [
        (f"{path}, line 1", {"text": "a", "label": 1}),
        (f"{path}, line 3", {"text": "b", "label": None}),
    ]


@pytest.mark.parametrize("suffix", COMPRESSIONS)
@pytest.mark.parametrize(("ending", "delimiter"), [(".csv", ","), (".tsv", "\t"), (".txt", ",")])
def test_the_ending_says_what_stands_between_columns(
    tmp_path: Path, suffix: str, ending: str, delimiter: str
):
    path = tmp_path / f"a{ending}{suffix}"
    text = "text,label\none,1\n\nzwei ü,2\n".replace(",", delimiter)
    path.write_bytes(COMPRESSIONS[suffix](b"\xef\xbb\xbf" + text.encode()))
    assert read(csv_table(path)) == [
        (f"{path}, line 2", {"text": "one", "label": "1"}),
        (f"{path}, line 4", {"text": "zwei ü", "label": "2"}),
    ]


def test_a_delimiter_of_ones_own(tmp_path: Path):
    (tmp_path / "a.tsv").write_text("text;label\r\na\tb;1\r\n")
    ((_, row),) = read(csv_table(tmp_path / "a.tsv", delimiter=";"))
    assert row == {"text": "a\tb", "label": "1"}


def test_quoted_values_hold_anything_and_places_count_lines(tmp_path: Path):
    path = tmp_path / "a.csv"
    path.write_text('text,label\n"two\nlines, ""quoted""",1\nnext,2\n')
    assert read(csv_table(path)) == [
        (f"{path}, line 2", {"text": 'two\nlines, "quoted"', "label": "1"}),
        (f"{path}, line 4", {"text": "next", "label": "2"}),
    ]


GLUE = 'text\tlabel\n"a said\t1\nb\t0\n"c\t1\nd "x"\t0\n"""e""" f\t1\n"g"\t0\n'


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("a.tsv", {}),
        ("a.TSV", {}),
        ("a.tsv.gz", {}),
        ("a.txt", {"delimiter": "\t"}),
        ("a.csv", {"delimiter": "\t", "quoting": "none"}),
    ],
)
def test_between_tabs_a_quote_is_a_character_like_any_other(
    tmp_path: Path, name: str, settings: dict[str, str]
):
    compress = COMPRESSIONS[".gz" if name.endswith(".gz") else ""]
    (tmp_path / name).write_bytes(compress(GLUE.encode()))
    found = read(csv_table(tmp_path / name, **settings))
    assert [(row["text"], row["label"]) for _, row in found] == [
        ('"a said', "1"),
        ("b", "0"),
        ('"c', "1"),
        ('d "x"', "0"),
        ('"""e""" f', "1"),
        ('"g"', "0"),
    ]


def test_quoting_can_be_set_for_any_delimiter(tmp_path: Path):
    (tmp_path / "a.tsv").write_text('text\tlabel\n"one\ttwo\n""three"""\t1\n')
    ((_, row),) = read(csv_table(tmp_path / "a.tsv", quoting="quoted"))
    assert row == {"text": 'one\ttwo\n"three"', "label": "1"}
    (tmp_path / "a.csv").write_text('text,label\n"one,1\n')
    ((_, row),) = read(csv_table(tmp_path / "a.csv", quoting="none"))
    assert row == {"text": '"one', "label": "1"}


def test_column_names_in_quotes_are_not_guessed(tmp_path: Path):
    (tmp_path / "a.tsv").write_text('"text"\t"label"\n"one"\t1\n')
    with pytest.raises(
        UserError, match=r"a\.tsv, line 1, names columns in quotes.*quoting: quoted"
    ):
        read(csv_table(tmp_path / "a.tsv"))
    ((_, row),) = read(csv_table(tmp_path / "a.tsv", quoting="quoted"))
    assert row == {"text": "one", "label": "1"}
    ((_, row),) = read(csv_table(tmp_path / "a.tsv", quoting="none"))
    assert row == {'"text"': '"one"', '"label"': "1"}


FIELD = st.text('ab",;\t\n\r é', max_size=8)


@given(st.lists(st.tuples(FIELD, FIELD), max_size=5), st.sampled_from(",;\t"))
def test_what_a_csv_writer_wrote_is_read(found: list[tuple[str, str]], delimiter: str):
    with TemporaryDirectory() as directory:
        path = Path(directory) / "a.csv"
        with path.open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream, delimiter=delimiter).writerows([("text", "label"), *found])
        again = read(csv_table(path, delimiter=delimiter, quoting="quoted"))
    assert [(row["text"], row["label"]) for _, row in again] == found


def test_fields_may_be_long_and_hold_quotes_that_do_not_open_them(tmp_path: Path):
    long, quotes = "x" * 200_000, '"' * 70_000
    doubled = quotes.replace('"', '""')
    (tmp_path / "a.csv").write_text(f'text,label\n{long},1\n"{doubled}",2\n5" disk,3\n"",4\n')
    found = read(csv_table(tmp_path / "a.csv"))
    assert [row["text"] for _, row in found] == [long, quotes, '5" disk', ""]


def test_every_file_of_a_glob_names_its_columns(tmp_path: Path):
    (tmp_path / "a.csv").write_text("text,label\na,1\n")
    (tmp_path / "b.csv").write_text("label,text\n2,b\n")
    assert [row for _, row in read(csv_table(tmp_path / "*.csv"))] == [
        {"text": "a", "label": "1"},
        {"text": "b", "label": "2"},
    ]


def test_an_empty_file_has_no_rows(tmp_path: Path):
    (tmp_path / "a.csv").touch()
    (tmp_path / "a.jsonl").touch()
    assert read(csv_table(tmp_path / "a.csv")) == read(jsonl_table(tmp_path / "a.jsonl")) == []


class TinyLabelled(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = Path(__file__).parent

    def _info(self) -> tfds.core.DatasetInfo:
        fields = {
            "text": tfds.features.Text(),
            "label": tfds.features.ClassLabel(names=["bad", "good"]),
            "stars": tfds.features.Scalar(np.int64),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(fields))

    def _split_generators(self, dl_manager: object) -> dict[str, object]:
        return {"test": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, object]]]:
        for number, label in enumerate(("good", "bad", -1)):
            yield number, {"text": f"ü{number}", "label": label, "stars": number}


def test_tfds_labels_are_names_and_numbers_are_pythons(tmp_path: Path):
    TinyLabelled(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    table = TFDSTable(kind="tfds", name="tiny_labelled", split="test", data_dir=str(tmp_path))
    found = read(table)
    assert found[0][0] == "TFDS dataset tiny_labelled, test example 0"
    values = sorted((row["text"].decode(), row["label"], row["stars"]) for _, row in found)
    assert values == [("ü0", "good", 0), ("ü1", "bad", 1), ("ü2", None, 2)]
    assert type(values[0][2]) is int
    assert "tensorflow" not in sys.modules


@pytest.fixture
def huggingface_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HuggingFaceTable:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "labelled").mkdir()
    features = {"text": datasets.Value("string"), "label": datasets.ClassLabel(2, ["bad", "good"])}
    content = {"text": ["one", "two", "three"], "label": [1, 0, -1]}
    dataset = datasets.Dataset.from_dict(content, datasets.Features(features))
    dataset.to_parquet(tmp_path / "labelled" / "test.parquet")
    return HuggingFaceTable(kind="huggingface", name=str(tmp_path / "labelled"), split="test")


def test_huggingface_labels_are_names(huggingface_table: HuggingFaceTable):
    found = read(huggingface_table)
    assert found[1] == (
        f"HuggingFace dataset {huggingface_table.name}, test example 1",
        {"text": "two", "label": "bad"},
    )
    assert [row["label"] for _, row in found] == ["good", "bad", None]


@pytest.mark.network
def test_the_demos_rows_have_a_place(demo_cache: Path):
    table = DemoTable(kind="demo", name="acl_roles", split="test")
    (where, row), *_, last = rows(table, demo_cache)
    assert (where, last[0]) == ("demo acl_roles, test row 1", "demo acl_roles, test row 1401")
    assert row.keys() == {"text", "label"}


# Bad input: each has a sentence that names the place.


def test_no_file_matches(tmp_path: Path):
    with pytest.raises(UserError, match=r"No file matches .*nothing\.csv"):
        read(csv_table(tmp_path / "nothing.csv"))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("text,label\na,1\nb,2,3\n", r"line 3, has 3 columns where the first line names 2"),
        ("text,label\na,1\nb\n", r"line 3, has 1 columns where the first line names 2"),
        ("text,label,text\na,1,b\n", r"line 1, names two columns 'text'"),
        ('text,label\na,1\n"b,2\nc,3\n', r"line 3, is not CSV \(unexpected end of data\)"),
        ('text,label\n"b" he said,2\n', r"line 2, is not CSV \(',' expected after '\"'\)"),
        ('text,label\na,1\n"b\nc"d,2\n', r"line 3, is not CSV .*closes it in line 4"),
        ('text,label\na,1\nb,"c\nd,2\n', r"line 3, is not CSV .*the quote that opens column 2"),
        ('text,label\n"b\nc",2,3\n', r"line 2, has 3 columns up to line 3"),
        ("text,label\ra,1\rb,2\r", r"line 1, holds a carriage return alone"),
        ("text,label\na,1\n\n\xff,1\n", r"line 4: byte 0xff at position 1 is not UTF-8"),
    ],
)
def test_lines_that_are_not_csv(tmp_path: Path, text: str, sentence: str):
    (tmp_path / "a.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=rf"a\.csv, {sentence}"):
        read(csv_table(tmp_path / "a.csv"))


def test_compressed_file_cut_short(tmp_path: Path):
    whole = gzip.compress("".join(f"line {n},1\n" for n in range(1000)).encode())
    (tmp_path / "a.csv.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"a\.csv\.gz cannot be read to its end"):
        read(csv_table(tmp_path / "a.csv.gz"))


# Fingerprints: the same rows are the same wherever they lie; anything else is not.


def test_fingerprint_depends_on_content_and_reading_alone(tmp_path: Path):
    tables = [
        csv_table(tmp_path / "a.csv.gz"),
        csv_table(tmp_path / "a.tsv.gz"),
        csv_table(tmp_path / "a.csv.gz", delimiter=";"),
        csv_table(tmp_path / "a.csv.gz", quoting="none"),
        csv_table(tmp_path / "a.tsv.gz", quoting="quoted"),
        csv_table(tmp_path / "b.csv.gz"),
        jsonl_table(tmp_path / "a.csv.gz"),
        DemoTable(kind="demo", name="tweets_outlet", split="train"),
        DemoTable(kind="demo", name="tweets_outlet", split="test"),
        DemoTable(kind="demo", name="news_outlet", split="test"),
    ]
    for name, text in (("a.csv", "a"), ("a.tsv", "a"), ("b.csv", "b"), ("elsewhere.csv", "a")):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    assert len({fingerprint(table) for table in tables}) == len(tables)
    assert fingerprint(csv_table(tmp_path / "elsewhere.csv.gz")) == fingerprint(tables[0])


def test_fingerprint_of_huggingface_depends_on_its_files(huggingface_table: HuggingFaceTable):
    before = fingerprint(huggingface_table)
    assert fingerprint(huggingface_table) == before
    path = Path(huggingface_table.name)
    (path / "train.parquet").write_bytes((path / "test.parquet").read_bytes())
    assert fingerprint(huggingface_table) != before
