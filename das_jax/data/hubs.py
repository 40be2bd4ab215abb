"""Documents and records of datasets known by name: TensorFlow Datasets and HuggingFace."""

import re
import struct
from collections.abc import Iterator, Mapping
from hashlib import file_digest, sha256
from itertools import accumulate, islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from das_jax.data.files import quoted
from das_jax.errors import UserError


def tfds_fields(
    name: str, split: str, fields: Mapping[str, str], data_dir: str | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The examples of a TFDS dataset that has certain fields, each with its place.

    Args:
        name: As in `tfds.load`.
        split: Of the dataset.
        fields: The fields by the settings that name them.
        data_dir: Where datasets are prepared.

    Raises:
        UserError: As `tfds_records`, or there is no such field.
    """
    features = _tfds_builder(name, split, data_dir).info.features or {}
    for setting, field in fields.items():
        if field not in features:
            raise UserError(
                f"The TFDS dataset {name} has no field {field!r}: it has {quoted(features)}; "
                f"set `{setting}` of this source."
            )
    yield from tfds_records(name, split, data_dir)


def tfds_records(
    name: str, split: str, data_dir: str | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The examples of a TFDS dataset, each with its place, read without TensorFlow.

    The dataset is prepared first if need be. Numbers are Python's, and labels are the names of their
    classes, None where there is none.

    Raises:
        UserError: No such dataset or split, or it cannot be had.
    """
    builder = _tfds_builder(name, split, data_dir)
    features = builder.info.features or {}
    classes = {
        field: feature.names
        for field, feature in features.items()
        if isinstance(feature, tfds.features.ClassLabel)
    }
    examples, number = _tfds_examples(builder, split), 0
    while True:
        try:
            record = next(examples, None)
        except Exception as error:  # Of the readers and of the decoders of any feature.
            raise UserError(
                f"The TFDS dataset {name} cannot be read after {split} example {number} "
                f"({_reason(error)}): its files in {builder.data_dir} are damaged; remove them, and prepare "
                "it again."
            ) from error
        if record is None:
            return
        plain = {k: v.item() if isinstance(v, np.generic) else v for k, v in record.items()}
        yield f"TFDS dataset {name}, {split} example {number}", _with_class_names(plain, classes)
        number += 1


def _tfds_examples(builder: tfds.core.DatasetBuilder, split: str) -> Iterator[dict[str, Any]]:
    if builder.info.file_format is not tfds.core.FileFormat.TFRECORD:
        yield from builder.as_data_source(split)
        return
    for part in builder.info.splits[split].file_instructions:
        stop = None if part.take == -1 else part.skip + part.take
        for record in islice(_tfrecords(Path(part.filename)), part.skip, stop):
            yield builder.info.features.deserialize_example_np(record)


def _tfrecords(path: Path) -> Iterator[bytes]:
    """The records of a TFRecord file: each stands between its length, with a checksum, and its checksum."""
    with path.open("rb") as stream:
        while head := stream.read(12):
            (size,) = struct.unpack("<Qxxxx", head)
            if size > path.stat().st_size:
                raise ValueError(f"a record of {size} bytes")
            record = stream.read(size + 4)
            if len(record) < size + 4:
                raise EOFError(f"{path.name} ends inside a record")
            yield record[:-4]


def tfds_fingerprint(name: str, split: str, data_dir: str | None) -> str:
    """SHA-256 over the dataset's full name and the content of the split's files."""
    builder = _tfds_builder(name, split, data_dir)
    total = sha256(builder.info.full_name.encode())
    for part in builder.info.splits[split].file_instructions:
        with Path(part.filename).open("rb") as stream:
            content = file_digest(stream, "sha256").hexdigest()
        total.update(f"{part.skip} {part.take} {content}\n".encode())
    return total.hexdigest()


def tfds_splits(name: str, split: str, data_dir: str | None) -> list[str]:
    """The shards of a split, each as a split of its own; a split that is a part of one stays whole."""
    splits = _tfds_builder(name, split, data_dir).info.splits
    if split not in splits:
        return [split]
    ends = list(accumulate(splits[split].shard_lengths))
    return [f"{split}[{start}:{end}]" for start, end in pairwise([0, *ends])]


def _tfds_builder(name: str, split: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
    folder = None if data_dir is None else Path(data_dir).expanduser()
    try:
        # Prepared, it is read as it is.
        builder = tfds.builder(name, data_dir=folder)
        if not builder.is_prepared():
            builder = tfds.builder(name, data_dir=folder, file_format="array_record")
            builder.download_and_prepare()
    except Exception as error:  # Datasets run code of their own, which may raise anything.
        raise _unavailable("TFDS", name, error) from error
    form = builder.info.file_format
    if form not in (*tfds.core.FileFormat.with_random_access(), tfds.core.FileFormat.TFRECORD):
        raise UserError(
            f"The TFDS dataset {name} is prepared as {form.value} in {builder.data_dir}, which is not read "
            "here: prepare it as array_record, in another `data_dir`."
        )
    try:
        builder.info.splits[split]
    except (KeyError, ValueError) as error:
        reason = _reason(error)
        why = "" if reason.startswith("Unknown split") else f" ({reason})"
        raise UserError(
            f"The TFDS dataset {name} has no split {split!r}{why}: it has {quoted(builder.info.splits)}; "
            "set `split`."
        ) from error
    return builder


def huggingface_fields(
    name: str, config: str | None, split: str, fields: Mapping[str, str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The examples of a HuggingFace dataset that have certain fields, each with its place.

    Args:
        name: On the hub, or a directory.
        config: Of the dataset, if it has several.
        split: Of the dataset.
        fields: The fields by the settings that name them.

    Raises:
        UserError: As `huggingface_records`, or there is no such field.
    """
    for where, record in huggingface_records(name, config, split):
        for setting, field in fields.items():
            if field not in record:
                raise UserError(
                    f"{where}: there is no field {field!r}, only {quoted(record)}; "
                    f"set `{setting}` of this source."
                )
        yield where, record


def huggingface_records(
    name: str, config: str | None, split: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The examples of a HuggingFace dataset, each with its place, streamed: nothing but the part being
    read is on this disk.

    Labels are the names of their classes, None where there is none.

    Raises:
        UserError: The library is missing; no such dataset, configuration or split; or it cannot be
            reached.
    """
    datasets = _datasets()
    try:
        dataset = datasets.load_dataset(name, config, split=split, streaming=True)
        records = iter(dataset)
    except Exception as error:  # The hub's client raises some twenty unrelated types.
        raise _unavailable("HuggingFace", name, error) from error
    classes = {
        field: feature.names
        for field, feature in (dataset.features or {}).items()
        if isinstance(feature, datasets.ClassLabel)
    }
    number = 0
    while True:
        try:
            record = next(records, None)
        except Exception as error:
            raise _unavailable("HuggingFace", name, error) from error
        if record is None:
            return
        where = f"HuggingFace dataset {name}, {split} example {number}"
        yield where, _with_class_names(record, classes)
        number += 1


def _with_class_names(record: dict[str, Any], classes: dict[str, list[str]]) -> dict[str, Any]:
    """Both hubs write -1 for an example without a label."""
    labels = {
        field: names[record[field]] if record[field] in range(len(names)) else None
        for field, names in classes.items()
    }
    return {**record, **labels}


def huggingface_fingerprint(name: str, config: str | None) -> str:
    """SHA-256 over the dataset's name, version, revision and the identity of its files.

    Raises:
        UserError: The library is missing, or the dataset cannot be reached.
    """
    datasets = _datasets()
    try:
        builder = datasets.load_dataset_builder(name, config)
    except Exception as error:
        raise _unavailable("HuggingFace", name, error) from error
    return sha256(
        repr((name, builder.config.name, str(builder.info.version), builder.hash)).encode()
    ).hexdigest()


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            "What is of kind `huggingface` needs the library datasets: pip install 'das-jax[huggingface]'."
        ) from error
    return datasets


# What is found in the names and words of an error, and what to do then; the first that is found counts.
REMEDIES = (
    (r"No space left on device", "free some space on the disk of its cache"),
    (r"Bad split", "set `split`"),
    (r"BuilderConfig|Config name is missing", "set `config`, with TFDS as a part of the name"),
    (r"at version|Parsing builder name|HFValidationError", "correct its name"),
    (
        r"is a gated dataset|GatedRepoError",
        "ask for access on its page, then log in with `hf auth login` or set HF_TOKEN",
    ),
    (
        r"[Ss]cripts are no longer supported",
        "scripts of others are never run; take it as Parquet or JSONL files",
    ),
    (
        r"EmptyDatasetError|DataFilesNotFoundError",
        "give one with Parquet, JSONL, CSV or text files",
    ),
    (
        r"OfflineModeIsEnabled",
        "the library is told to stay off the network, by HF_HUB_OFFLINE or HF_DATASETS_OFFLINE",
    ),
    (r"Couldn't find any data file at", "there is no such directory"),
    (r"Dataset \S+ not found", "check its name, and `data_dir` if it was prepared elsewhere"),
    (
        r"DatasetNotFoundError|RepositoryNotFoundError",
        "check its name, and set HF_TOKEN if it is not public",
    ),
    (
        r"ConnectionError|ConnectError|Timeout|NameResolution|getaddrinfo|URLError|HTTPError|DownloadError",
        "check the network",
    ),
    (r"ImportError|ModuleNotFoundError", "install the package that its own code needs"),
    (
        r"ArrowInvalid|ArrowException|JSONDecodeError|ParseError|UnicodeDecodeError|BadGzipFile|EOFError",
        "a file of it is damaged, or not what its name says",
    ),
    (r"OSError", "check the path and your rights"),
)


def _unavailable(hub: str, name: str, error: Exception) -> UserError:
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__) is not None:
        causes.append(cause)
    words = "\n".join(
        f"{' '.join(kind.__name__ for kind in type(cause).__mro__)} {cause}" for cause in causes
    )
    found = (remedy for sign, remedy in REMEDIES if re.search(sign, words))
    remedy = next(found, f"that is what the library of {hub} says")
    return UserError(f"The {hub} dataset {name} cannot be had ({_reason(error)}): {remedy}.")


def _reason(error: Exception) -> str:
    text = re.sub(
        r"^Failed to construct dataset .*?\}\": ", "", str(error).strip(), flags=re.DOTALL
    )
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    first = lines[0] if lines else type(error).__name__
    return first.partition(". Here are")[0].rstrip(".:")
