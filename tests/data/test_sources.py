"""Reading documents: every format, every compression, every bad input."""

import gzip
import io
import json
import struct
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds
import zstandard
from array_record.python.array_record_module import ArrayRecordReader
from etils import epath

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


@pytest.mark.parametrize("name", ["a.txt", "a.TXT.GZ", "a.bz2", "a.xz", "a.zst", "a"])
@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_the_first_bytes_say_how_a_file_is_compressed_not_its_name(
    tmp_path: Path, suffix: str, name: str
):
    (tmp_path / name).write_bytes(COMPRESSIONS[suffix]("one\nzwei ü\n".encode()))
    assert read(text_source(tmp_path / name)) == ["one", "zwei ü"]


def test_zstd_with_the_largest_window_and_frames_to_skip(tmp_path: Path):
    settings = zstandard.ZstdCompressionParameters(window_log=31)
    frames = []
    for text in (b"one\n", b"two\n"):
        writer = zstandard.ZstdCompressor(compression_params=settings).compressobj()
        frames.append(writer.compress(text) + writer.flush())
        assert zstandard.get_frame_parameters(frames[-1]).window_size == 1 << 31
    skipped = b"\x50\x2a\x4d\x18" + b"\4\0\0\0" + b"skip"
    (tmp_path / "a.zst").write_bytes(skipped + frames[0] + skipped + frames[1])
    assert read(text_source(tmp_path / "a.zst")) == ["one", "two"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_byte_order_mark_says_how_a_text_is_written(tmp_path: Path, encoding: str, suffix: str):
    text = '{"text": "ein ü und ein 😀"}\r\n{"text": "two"}\n'
    (tmp_path / "a.jsonl").write_bytes(COMPRESSIONS[suffix](text.encode(encoding)))
    assert read(jsonl_source(tmp_path / "a.jsonl")) == ["ein ü und ein 😀", "two"]


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


def as_tfrecord(source: TFDSSource) -> Path:
    """Makes a prepared dataset one as TensorFlow would have written it; the checksums are left out."""
    directory = Path(source.data_dir) / "tiny_texts" / "1.0.0"
    (file,) = directory.glob("*.array_record*")
    reader = ArrayRecordReader(str(file))
    records = reader.read(0, reader.num_records())
    reader.close()
    file.unlink()
    file = file.with_name(file.name.replace("array_record", "tfrecord"))
    file.write_bytes(
        b"".join(struct.pack("<QI", len(each), 0) + each + bytes(4) for each in records)
    )
    facts = directory / "dataset_info.json"
    facts.write_text(facts.read_text().replace("array_record", "tfrecord"))
    return file


def test_tfds_prepared_as_tfrecord(tmp_path: Path):
    source = tfds_source(tmp_path, "one", "zwei ü", "three")
    texts = read(source)
    as_tfrecord(source)
    assert read(source) == texts
    assert read(replace(source, split="train[1:2]")) == texts[1:2]
    assert read(replace(source, split="train[2:]+train[:1]")) == [texts[2], texts[0]]
    assert "tensorflow" not in sys.modules


def test_tfds_cut_short(tmp_path: Path):
    source = tfds_source(tmp_path, "one", "two")
    file = as_tfrecord(source)
    file.write_bytes(file.read_bytes()[:-5])
    said = (
        r"tiny_texts cannot be read after train example 1 \(.* ends inside a record\): .* damaged"
    )
    with pytest.raises(UserError, match=said):
        read(source)


def test_tfds_damaged(tmp_path: Path):
    source = tfds_source(tmp_path, "one", "two")
    (file,) = tmp_path.rglob("*.array_record*")
    content = bytearray(file.read_bytes())
    for place in range(40, len(content)):
        content[place] ^= 255
    file.write_bytes(content)
    with pytest.raises(
        UserError, match=r"tiny_texts cannot be read after train example 0 .*damaged"
    ):
        read(source)


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


def test_a_json_list_over_several_lines_is_no_jsonl(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('[\n  {"text": "a"}\n]\n')
    with pytest.raises(UserError, match=r"a\.jsonl, line 1, is not JSON .*one object a line"):
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
    sentence = r"a\.parquet cannot be read to its end .*: text is read with kind: text or jsonl"
    with pytest.raises(UserError, match=sentence):
        read(parquet_source(tmp_path / "a.parquet"))


@pytest.mark.parametrize("suffix", [suffix for suffix in COMPRESSIONS if suffix])
def test_compressed_file_cut_short(tmp_path: Path, suffix: str):
    text = "".join(f"line {n}\n" for n in range(1000)).encode()
    whole = COMPRESSIONS[suffix](text)
    (tmp_path / f"a.txt{suffix}").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"a\.txt\S+ cannot be read to its end"):
        read(text_source(tmp_path / f"a.txt{suffix}"))


@pytest.mark.parametrize("suffix", [suffix for suffix in COMPRESSIONS if suffix])
def test_damage_to_the_first_bytes_is_not_taken_for_another_encoding(tmp_path: Path, suffix: str):
    whole = COMPRESSIONS[suffix](b"a text\n" * 100)
    (tmp_path / f"a.txt{suffix}").write_bytes(bytes([whole[0] ^ 255]) + whole[1:])
    with pytest.raises(UserError, match=r"a\.txt\S+ cannot be read to its end"):
        read(text_source(tmp_path / f"a.txt{suffix}"))


def tar(data: bytes) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as members:
        member = tarfile.TarInfo("a.txt")
        member.size = len(data)
        members.addfile(member, io.BytesIO(data))
    return archive.getvalue()


def parquet(text: str) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"text": [text]}), file)
    return file.getvalue()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"PK\x03\x04\x14\0\0\0", "is a zip archive, not text: unpack it"),
        (tar(b"text\n"), "is a tar archive, not text: unpack it"),
        (gzip.compress(tar(b"text\n")), "is a tar archive, not text: unpack it"),
        (gzip.compress(gzip.compress(b"text\n")), "is gzip inside gzip"),
        (parquet("text"), "is a Parquet file, not text: read it with kind: parquet"),
        (POINTER, "is only the pointer of Git LFS"),
        (
            "text without a mark\n".encode("utf-16-le"),
            "is text in UTF-16 or UTF-32 without the mark",
        ),
        ("text\n".encode("utf-16")[:-1], "begins as UTF-16 and is not that after line 0"),
        (b"text\ncaf\xe9\n", "line 2: byte 0xe9 at position 4 is not UTF-8"),
    ],
    ids=["zip", "tar", "tar.gz", "gz.gz", "parquet", "lfs", "utf-16-le", "utf-16", "latin-1"],
)
def test_what_is_no_text_is_called_what_it_is(tmp_path: Path, content: bytes, sentence: str):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(UserError, match=rf"a\.txt,? {sentence}"):
        read(text_source(tmp_path / "a.txt"))


def test_what_is_packed_well_is_not_called_cut_short(tmp_path: Path):
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"caf\xe9\n"))
    with pytest.raises(UserError, match=r"a\.gz, line 1: byte 0xe9 at position 4 is not UTF-8"):
        read(text_source(tmp_path / "a.gz"))
    (tmp_path / "b.gz").write_bytes(b"caf\xe9\n")
    with pytest.raises(UserError, match=r"b\.gz .*its name says gzip, but it does not begin so"):
        read(text_source(tmp_path / "b.gz"))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty"),
        (gzip.compress(parquet("text")), "is compressed with gzip as a whole"),
        (POINTER, "is only the pointer of Git LFS"),
        (parquet("text")[:-1], "cannot be read to its end"),
    ],
    ids=["empty", "gz", "lfs", "cut"],
)
def test_what_is_no_parquet_is_called_what_it_is(tmp_path: Path, content: bytes, sentence: str):
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(UserError, match=rf"a\.parquet {sentence}"):
        read(parquet_source(tmp_path / "a.parquet"))


@pytest.mark.parametrize("text", ["PAR1 is a receptor", "BZh9 and 1AY", "ORCA whales", "%PDF-1.4"])
def test_a_text_may_begin_as_other_files_do(tmp_path: Path, text: str):
    (tmp_path / "a.txt").write_text(text)
    assert read(text_source(tmp_path / "a.txt")) == [text]


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def forbidden(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a.txt").write_text("one")
    monkeypatch.setattr(type(epath.Path()), "open", forbidden)
    source = text_source(tmp_path / "a.txt")
    for use in (read, fingerprint):
        with pytest.raises(UserError, match=r"a\.txt cannot be read \(Permission denied\)"):
            use(source)


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


@pytest.mark.parametrize(
    ("split", "sentence"),
    [
        ("test", "'test': it has 'train'; set `split`"),
        ("train+test", "'train\\+test': it has 'train'; set `split`"),
        ("train[5:9]", r"\(Requested slice \[5:9\] incompatible with 1 examples\): it has 'train'"),
        ("train[:10", r"\(Error parsing split .*\): it has 'train'; set `split`"),
    ],
)
def test_unknown_tfds_split(tmp_path: Path, split: str, sentence: str):
    with pytest.raises(UserError, match=rf"tiny_texts has no split .*{sentence}"):
        read(tfds_source(tmp_path, "one", split=split))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("tiny_texts:9.9.9", r"only: 1\.0\.0\): correct its name"),
        ("tiny_texts/no", "set `config`"),
        ("no texts!", "correct its name"),
        ("no_such_texts", r"check its name, and `data_dir`"),
    ],
)
def test_unknown_tfds_version_configuration_or_name(tmp_path: Path, name: str, sentence: str):
    source = replace(tfds_source(tmp_path, "one"), name=name)
    with pytest.raises(UserError, match=sentence) as raised:
        read(source)
    assert "network" not in str(raised.value)


def test_unknown_huggingface_dataset(tmp_path: Path):
    source = HuggingFaceSource(kind="huggingface", name=str(tmp_path / "nothing"))
    with pytest.raises(UserError, match=r"The HuggingFace dataset .*nothing cannot be had"):
        read(source)


def test_unknown_huggingface_split(huggingface_directory: Path):
    source = HuggingFaceSource(kind="huggingface", name=str(huggingface_directory), split="test")
    with pytest.raises(
        UserError, match=r"cannot be had \(Bad split: test.*'train'.*\): set `split`"
    ):
        read(source)


def test_unknown_huggingface_configuration(huggingface_directory: Path):
    source = HuggingFaceSource(kind="huggingface", name=str(huggingface_directory), config="c")
    for use in (read, fingerprint):
        with pytest.raises(UserError, match=r"'c' not found.*\): set `config`"):
            use(source)


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({}, "doesn't contain any data files.*: give one with Parquet, JSONL"),
        ({"a.bin": "a"}, "data files found .*: give one with Parquet, JSONL"),
        ({"texts.py": "import datasets"}, "scripts of others are never run"),
        ({"train.jsonl": "{no json\n"}, "a file of it is damaged"),
        ({"train.parquet": "PAR1 no"}, "a file of it is damaged"),
        (None, "there is no such directory"),
    ],
)
def test_huggingface_directories_without_data(
    huggingface_directory: Path, files: dict[str, str] | None, sentence: str
):
    (huggingface_directory / "train.jsonl").unlink()
    for name, content in (files or {}).items():
        (huggingface_directory / name).write_text(content)
    if files is None:
        huggingface_directory.rmdir()
    source = HuggingFaceSource(kind="huggingface", name=str(huggingface_directory))
    with pytest.raises(UserError, match=sentence) as raised:
        read(source)
    assert "\n" not in str(raised.value)
    assert "network" not in str(raised.value)


def test_the_hubs_own_reasons_have_remedies_of_their_own(monkeypatch: pytest.MonkeyPatch):
    datasets = pytest.importorskip("datasets")
    missing = datasets.exceptions.DatasetNotFoundError
    reasons = {
        missing(
            "Dataset 'a/aggregated' doesn't exist on the Hub"
        ): "check its name, and set HF_TOKEN",
        missing("Dataset 'a/b' is a gated dataset on the Hub.\nVisit its page"): "ask for access",
        ConnectionError("Couldn't reach 'a/b' on the Hub (ConnectTimeout)"): "check the network",
        ConnectionError("Couldn't reach 'a/b' on the Hub (OfflineModeIsEnabled)"): "HF_HUB_OFFLINE",
        OSError(28, "No space left on device"): "free some space",
        ModuleNotFoundError("No module named 'soundfile'"): "install the package",
        ZeroDivisionError(): r"\(ZeroDivisionError\): that is what the library of HuggingFace says",
    }
    for error, sentence in reasons.items():
        monkeypatch.setattr(datasets, "load_dataset", Mock(side_effect=error))
        with pytest.raises(UserError, match=sentence) as raised:
            read(HuggingFaceSource(kind="huggingface", name="a/b"))
        assert "\n" not in str(raised.value)


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
