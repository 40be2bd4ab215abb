"""Reading documents: every format, every compression, every bad input."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds

from das_jax.data.sources import (
    HuggingFaceSource,
    JSONLSource,
    ParquetSource,
    Source,
    TextSource,
    TFDSSource,
    documents,
    fingerprint,
    label,
)
from das_jax.errors import UserError
from tests.data.conftest import COMPRESSIONS


def read(source: Source) -> list[str]:
    return list(documents(source, Path("/nonexistent")))


def text_source(path: Path, separator: str = "line") -> TextSource:
    return TextSource(kind="text", path=str(path), documents=separator)


def jsonl_source(path: Path, field: str = "text") -> JSONLSource:
    return JSONLSource(kind="jsonl", path=str(path), field=field)


def parquet_source(path: Path, field: str = "text") -> ParquetSource:
    return ParquetSource(kind="parquet", path=str(path), field=field)


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_lines_are_documents_in_every_compression(tmp_path: Path, suffix: str):
    path = tmp_path / f"a.txt{suffix}"
    # Two members one after the other, as parallel compressors write them.
    compress = COMPRESSIONS[suffix]
    path.write_bytes(compress("one\r\n\n  zwei ü \n".encode()) + compress(b"three"))
    assert read(text_source(path)) == ["one", "zwei ü", "three"]


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_jsonl_in_every_compression(tmp_path: Path, suffix: str):
    path = tmp_path / f"a.jsonl{suffix}"
    lines = [json.dumps({"id": n, "body": f"text {n}"}) for n in range(3)]
    path.write_bytes(COMPRESSIONS[suffix](("\n".join(lines) + "\n\n").encode()))
    assert read(jsonl_source(path, "body")) == ["text 0", "text 1", "text 2"]


def test_blank_lines_separate_documents(tmp_path: Path):
    (tmp_path / "a.txt").write_text("\n\none\nstill one\n \t\n\ntwo\n\n\nthree")
    source = text_source(tmp_path / "a.txt", "blank_line")
    assert read(source) == ["one\nstill one", "two", "three"]


def test_a_document_does_not_run_on_into_the_next_file(tmp_path: Path):
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.txt").write_text("two")
    assert read(text_source(tmp_path / "*.txt", "blank_line")) == ["one", "two"]


def test_a_glob_is_read_in_sorted_order_into_folders(tmp_path: Path):
    for name in ("b/2.txt", "a/9.txt", "c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert read(text_source(tmp_path / "**" / "*.txt")) == ["a/9.txt", "b/2.txt", "c.txt"]


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path: Path):
    (tmp_path / "a[1].txt").write_text("one")
    assert read(text_source(tmp_path / "a[1].txt")) == ["one"]


def test_a_byte_order_mark_is_no_text(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\n")
    assert read(text_source(tmp_path / "a.txt")) == ["one"]


def test_parquet_over_several_row_groups(tmp_path: Path):
    texts = [f"text {n}" for n in range(1000)]
    table = pa.table({"id": range(1000), "body": texts})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=300)
    assert read(parquet_source(tmp_path / "a.parquet", "body")) == texts


def test_files_are_read_as_a_stream(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"good\n" * 10 + b"\xff\n")
    stream = documents(text_source(path), tmp_path)
    assert [next(stream) for _ in range(10)] == ["good"] * 10
    with pytest.raises(UserError):
        next(stream)


def test_tfds_without_tensorflow(tmp_path: Path):
    texts = ["one", "zwei ü", "three"]
    source = tfds_source(tmp_path, *texts)
    assert sorted(read(source)) == sorted(texts)
    assert "tensorflow" not in sys.modules


class TinyTexts(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = Path(__file__).parent

    def __init__(self, texts: tuple[str, ...] = (), **settings: object):
        self.texts = texts
        super().__init__(**settings)

    def _info(self) -> tfds.core.DatasetInfo:
        fields = {"text": tfds.features.Text(), "stars": tfds.features.Scalar(np.int64)}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(fields))

    def _split_generators(self, dl_manager: object) -> dict[str, object]:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, object]]]:
        for number, text in enumerate(self.texts):
            yield number, {"text": text, "stars": number}


def tfds_source(data_dir: Path, *texts: str, **changes: str) -> TFDSSource:
    TinyTexts(texts, data_dir=data_dir, file_format="array_record").download_and_prepare()
    return TFDSSource(kind="tfds", name="tiny_texts", data_dir=str(data_dir), **changes)


def test_huggingface_dataset_is_streamed(huggingface_directory: Path):
    source = HuggingFaceSource(kind="huggingface", name=str(huggingface_directory))
    assert read(source) == ["one", "two"]


@pytest.fixture
def huggingface_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    directory = tmp_path / "texts"
    directory.mkdir()
    (directory / "train.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    return directory


# Bad input: each has a sentence that names the place.


def test_no_file_matches(tmp_path: Path):
    with pytest.raises(UserError, match=r"No file matches .*nothing-\*\.txt"):
        read(text_source(tmp_path / "nothing-*.txt"))


def test_undecodable_bytes_name_file_and_line(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes(b"good\nbad \xe4 here\n")
    with pytest.raises(UserError, match=r"a\.txt, line 2: byte 0xe4 at position 5 is not UTF-8"):
        read(text_source(tmp_path / "a.txt"))


def test_undecodable_bytes_in_jsonl(tmp_path: Path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n{"text": "\xff"}\n')
    with pytest.raises(UserError, match=r"a\.jsonl, line 2: byte 0xff"):
        read(jsonl_source(tmp_path / "a.jsonl"))


def test_undecodable_bytes_in_parquet(tmp_path: Path):
    bad = pa.array([b"good", b"\xff"]).view(pa.string())
    pq.write_table(pa.table({"text": bad}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet, row 2: byte 0xff"):
        read(parquet_source(tmp_path / "a.parquet"))


def test_missing_jsonl_field_names_file_line_and_fields(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n\n{"body": "b", "id": 1}\n')
    with pytest.raises(UserError, match=r"a\.jsonl, line 3, has no field 'text': .*'body', 'id'"):
        read(jsonl_source(tmp_path / "a.jsonl"))


@pytest.mark.parametrize("line", ['{"text": ', "[" * 100_000, '{"text": 1' + "0" * 5000 + "}"])
def test_broken_json_names_file_and_line(tmp_path: Path, line: str):
    (tmp_path / "a.jsonl").write_text(f'{{"text": "a"}}\n{line}\n')
    with pytest.raises(UserError, match=r"a\.jsonl, line 2, is not JSON"):
        read(jsonl_source(tmp_path / "a.jsonl"))


def test_json_that_is_no_object(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('"text"\n')
    with pytest.raises(UserError, match=r"a\.jsonl, line 1, is not a JSON object"):
        read(jsonl_source(tmp_path / "a.jsonl"))


@pytest.mark.parametrize(("value", "kind"), [("null", "null"), ("3", "int"), ('["a"]', "list")])
def test_field_that_is_no_text(tmp_path: Path, value: str, kind: str):
    (tmp_path / "a.jsonl").write_text(f'{{"text": {value}}}\n')
    with pytest.raises(
        UserError, match=rf"a\.jsonl, line 1: field 'text' holds {kind}, not a text"
    ):
        read(jsonl_source(tmp_path / "a.jsonl"))


def test_half_a_character(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"text": "\\ud83d"}\n')
    with pytest.raises(UserError, match=r"a\.jsonl, line 1: .*half a character \(\\ud83d\)"):
        read(jsonl_source(tmp_path / "a.jsonl"))


def test_missing_parquet_column_names_those_there(tmp_path: Path):
    pq.write_table(pa.table({"body": ["a"], "id": [1]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet has no column 'text': it has 'body', 'id'"):
        read(parquet_source(tmp_path / "a.parquet"))


def test_parquet_null(tmp_path: Path):
    pq.write_table(pa.table({"text": ["a", None]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet, row 2: field 'text' holds null"):
        read(parquet_source(tmp_path / "a.parquet"))


def test_a_file_that_is_not_parquet(tmp_path: Path):
    (tmp_path / "a.parquet").write_text("text")
    with pytest.raises(UserError, match=r"a\.parquet cannot be read to its end"):
        read(parquet_source(tmp_path / "a.parquet"))


@pytest.mark.parametrize("suffix", [suffix for suffix in COMPRESSIONS if suffix])
def test_compressed_file_cut_short(tmp_path: Path, suffix: str):
    text = "".join(f"line {n}\n" for n in range(1000)).encode()
    whole = COMPRESSIONS[suffix](text)
    (tmp_path / f"a.txt{suffix}").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"a\.txt\S+ cannot be read to its end"):
        read(text_source(tmp_path / f"a.txt{suffix}"))


@pytest.mark.parametrize("suffix", [suffix for suffix in COMPRESSIONS if suffix])
def test_file_that_is_not_compressed_as_its_name_says(tmp_path: Path, suffix: str):
    (tmp_path / f"a.txt{suffix}").write_text("plain text, longer than any header of any format\n")
    with pytest.raises(UserError, match=r"a\.txt\S+ cannot be read to its end"):
        read(text_source(tmp_path / f"a.txt{suffix}"))


def test_unknown_tfds_dataset(tmp_path: Path):
    source = TFDSSource(kind="tfds", name="no_such_texts", data_dir=str(tmp_path))
    with pytest.raises(UserError, match="The TFDS dataset no_such_texts cannot be had"):
        read(source)


def test_unknown_tfds_field(tmp_path: Path):
    with pytest.raises(UserError, match=r"tiny_texts has no field 'body': it has .*'text'"):
        read(tfds_source(tmp_path, "one", field="body"))


def test_tfds_field_that_is_no_text(tmp_path: Path):
    with pytest.raises(UserError, match=r"tiny_texts, train example 0: field 'stars' holds int"):
        read(tfds_source(tmp_path, "one", field="stars"))


def test_unknown_tfds_split(tmp_path: Path):
    with pytest.raises(UserError, match=r"tiny_texts has no split 'test': it has 'train'"):
        read(tfds_source(tmp_path, "one", split="test"))


def test_unknown_huggingface_dataset(tmp_path: Path):
    source = HuggingFaceSource(kind="huggingface", name=str(tmp_path / "nothing"))
    with pytest.raises(UserError, match=r"The HuggingFace dataset .*nothing cannot be had"):
        read(source)


def test_unknown_huggingface_split(huggingface_directory: Path):
    source = HuggingFaceSource(kind="huggingface", name=str(huggingface_directory), split="test")
    with pytest.raises(UserError, match="cannot be had"):
        read(source)


def test_unknown_huggingface_field(huggingface_directory: Path):
    source = HuggingFaceSource(kind="huggingface", name=str(huggingface_directory), field="body")
    with pytest.raises(UserError, match="example 0: there is no field 'body', only 'text'"):
        read(source)


def test_huggingface_library_missing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    source = HuggingFaceSource(kind="huggingface", name="any")
    with pytest.raises(UserError, match=r"pip install 'das-jax\[huggingface\]'"):
        read(source)


# Fingerprints: the same text is the same wherever it lies; anything else is not.


def test_fingerprint_does_not_depend_on_the_place(tmp_path: Path):
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.txt").write_text("one")
    assert fingerprint(text_source(tmp_path / "a.txt")) == fingerprint(
        text_source(tmp_path / "b.txt")
    )


def test_fingerprint_depends_on_content_and_reading(tmp_path: Path):
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.txt").write_text("two")
    (tmp_path / "c.txt.gz").write_text("one")
    (tmp_path / "ab.txt").write_text("onetwo")
    found = {
        fingerprint(text_source(tmp_path / "a.txt")),
        fingerprint(text_source(tmp_path / "a.txt", "blank_line")),
        fingerprint(text_source(tmp_path / "b.txt")),
        fingerprint(text_source(tmp_path / "c.txt.gz")),
        fingerprint(text_source(tmp_path / "?.txt")),
        fingerprint(text_source(tmp_path / "ab.txt")),
        fingerprint(jsonl_source(tmp_path / "a.txt")),
        fingerprint(jsonl_source(tmp_path / "a.txt", "body")),
    }
    assert len(found) == 8


def test_fingerprint_of_tfds_depends_on_its_files(tmp_path: Path):
    one = tfds_source(tmp_path / "1", "one", "two")
    same = tfds_source(tmp_path / "2", "one", "two")
    other = tfds_source(tmp_path / "3", "one", "six")
    part = TFDSSource(kind="tfds", name="tiny_texts", split="train[:1]", data_dir=one.data_dir)
    assert fingerprint(one) == fingerprint(same)
    assert len({fingerprint(one), fingerprint(other), fingerprint(part)}) == 3


def test_fingerprint_of_huggingface_depends_on_its_files(huggingface_directory: Path):
    source = HuggingFaceSource(kind="huggingface", name=str(huggingface_directory))
    before = fingerprint(source)
    assert fingerprint(source) == before
    (huggingface_directory / "train.jsonl").write_text('{"text": "another"}\n')
    assert fingerprint(source) != before


def test_label_names_the_source():
    assert label(TextSource(kind="text", path="papers/*.txt")) == "text:papers/*.txt"
    assert label(TFDSSource(kind="tfds", name="c4")) == "tfds:c4"
