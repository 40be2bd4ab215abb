"""What a configuration says of text, end tasks and facts.

Apart from the modules that do what they say, so that a configuration is checked before these import what is
heavy.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat

from das_jax.settings import (
    AnyPath,
    BatchSize,
    Count,
    CountOrZero,
    Length,
    Name,
    refusing_beside,
    settings,
)

Quoting = Literal["auto", "quoted", "none"]
"""Of a table's fields; `auto` is none where tabs stand between them and quoted elsewhere."""

Delimiter = Annotated[str, Field(pattern=r'^[^"\r\n]$')]
"""One character."""

Recognised = Literal["markers", "all", "none"]
"""Which added tokens of a tokenizer are recognised where a text spells them."""


ObjectiveName = Literal["masked", "causal", "supervised"]
"""What is predicted of a text: hidden tokens, every next token, or every next token of a response."""

DocumentsName = Literal["joined", "apart"]
"""Whether the documents of a chunk see each other."""


@settings
class TextSource:
    kind: Literal["text"]
    path: AnyPath
    """A file or a glob; gzip, bzip2, xz and zstd are unpacked, whatever the name."""
    documents: Literal["line", "blank_line"] = "line"
    """What separates documents: every line is one, or blank lines stand between them."""


@settings
class RecordSettings:
    field: str = "text"
    """The field of the text."""
    date: str | None = None
    """The field of the date, if texts are to begin with their year: `year: 2021 text: ...`, which is never
    masked. Null is no date; see docs/text.md."""
    prompt: str | None = None
    """The field of what is answered, for the objective `supervised`; see docs/text.md."""
    response: str | None = None
    """The field of the answer to `prompt`, which alone is learned."""
    messages: str | None = None
    """The field of a conversation, in place of `prompt` and `response`: a list of objects with `role` and
    `content`, of which what the assistant says is learned."""


@settings
class JSONLSource(RecordSettings):
    kind: Literal["jsonl"]
    path: AnyPath


@settings
class CSVSource(RecordSettings):
    kind: Literal["csv"]
    path: AnyPath
    """A file or a glob; gzip, bzip2, xz and zstd are unpacked, whatever the name. The first line names the
    columns."""
    delimiter: Delimiter | None = None
    """What stands between columns; when absent, a tab in .tsv files and a comma in others."""
    quoting: Quoting = "auto"
    """As of a table of end tasks."""


@settings
class ParquetSource(RecordSettings):
    kind: Literal["parquet"]
    path: AnyPath


@settings
class TFDSSource(RecordSettings):
    kind: Literal["tfds"]
    name: str
    """As in `tfds.load`: `name`, `name/config`, `name:version`."""
    split: str = "train"
    data_dir: AnyPath | None = None


@settings
class HuggingFaceSource(RecordSettings):
    kind: Literal["huggingface"]
    name: str
    config: str | None = None
    split: str = "train"


FIRST_ADDRESS, LAST_ADDRESS = 1790, 2026


def _not_of_addresses(value: Any, beside: Mapping[str, Any]) -> str | None:
    if not value or beside.get("name", "sotu") == "sotu":
        return None
    return "is for name: sotu alone, whose texts have dates; leave it out"


def _unfit_years(years: tuple[int, int] | None, beside: Mapping[str, Any]) -> str | None:
    if years is not None and not FIRST_ADDRESS <= years[0] <= years[1] <= LAST_ADDRESS:
        return f"is {list(years)}; give the first and the last year, in {FIRST_ADDRESS} to {LAST_ADDRESS}"
    return None


@settings
class DemoSource:
    kind: Literal["demo"]
    name: Literal["news", "acl", "reviews", "tweets", "drugs", "sotu"]
    years: Annotated[
        tuple[int, int] | None, refusing_beside(_not_of_addresses), refusing_beside(_unfit_years)
    ] = None
    """Of `sotu`, the State of the Union addresses: the first and the last year that are read, such as
    [1900, 1949]; all of them, 1790 to 2026, when absent."""
    date: Annotated[Literal["date"] | None, refusing_beside(_not_of_addresses)] = None
    """Of `sotu`: `date`, if texts are to begin with their year: `year: 2021 text: ...`, which is never
    masked; see docs/text.md."""
    paragraphs: Annotated[bool, refusing_beside(_not_of_addresses)] = False
    """Of `sotu`: whether every paragraph is a document, and not every address."""


RecordSource = Annotated[
    JSONLSource | CSVSource | ParquetSource | TFDSSource | HuggingFaceSource,
    Field(discriminator="kind"),
]
"""A source whose documents have fields beside the text."""


def _dated_in_vain(old: RecordSource, beside: Mapping[str, Any]) -> str | None:
    if old.date is None:
        return None
    return "has a date, but what is given is the text of the new dump; set new.date"


@settings
class SnapshotsSource:
    """Two dumps of the same documents; see docs/text.md."""

    kind: Literal["snapshots"]
    old: Annotated[RecordSource, refusing_beside(_dated_in_vain)]
    """The earlier dump."""
    new: RecordSource
    """The later dump."""
    id: str = "id"
    """The field, of both, that says which document is which."""
    what: Literal["changed", "unchanged"] = "changed"
    """The sentences that the old dump lacks and the documents that it has not, or the sentences that both
    have."""


Source = Annotated[
    TextSource
    | JSONLSource
    | CSVSource
    | ParquetSource
    | TFDSSource
    | HuggingFaceSource
    | DemoSource
    | SnapshotsSource,
    Field(discriminator="kind"),
]


def is_dated(source: Source) -> bool:
    """Whether a source's texts begin with their dates."""
    dated = source.new if isinstance(source, SnapshotsSource) else source
    return getattr(dated, "date", None) is not None


@settings
class JSONLTable:
    kind: Literal["jsonl"]
    path: AnyPath
    """A file or a glob; gzip, bzip2, xz and zstd are unpacked, whatever the name. Every line is an object."""


@settings
class CSVTable:
    kind: Literal["csv"]
    path: AnyPath
    """A file or a glob; gzip, bzip2, xz and zstd are unpacked, whatever the name. The first line names the
    columns."""
    delimiter: Delimiter | None = None
    """What stands between columns; when absent, a tab in .tsv files and a comma in others."""
    quoting: Quoting = "auto"
    """`quoted`: quotes hold a field with delimiters and line ends together, and are doubled inside it.
    `none`: quotes are characters like any other, and every line is a row. `auto`: none where tabs stand
    between columns, quoted elsewhere."""


@settings
class TFDSTable:
    kind: Literal["tfds"]
    name: str
    """As in `tfds.load`: `name`, `name/config`, `name:version`."""
    split: str
    data_dir: AnyPath | None = None


@settings
class HuggingFaceTable:
    kind: Literal["huggingface"]
    name: str
    config: str | None = None
    split: str


@settings
class DemoTable:
    kind: Literal["demo"]
    name: Literal["acl_roles", "reviews_fresh", "tweets_outlet", "news_outlet"]
    split: Literal["train", "test"]


Table = Annotated[
    JSONLTable | CSVTable | TFDSTable | HuggingFaceTable | DemoTable, Field(discriminator="kind")
]


@settings
class Sizes:
    train: Count
    """Training examples."""
    test: Count
    """Test examples."""
    classes: Count
    """Classes."""


@settings
class TaskSettings:
    name: Name
    """What files and reports call it."""
    domain: Name | None = None
    """The domain whose knowledge it asks for; a task without one asks for general knowledge."""
    train: Table
    """The rows that a classifier is trained on."""
    test: Table
    """The rows that the scores are of."""
    validation: Table | None = None
    """The rows on which the best epoch is chosen. Without them the last epoch counts, as in the paper."""
    text: str = "text"
    """The column of the text."""
    date: str | None = None
    """The column of the date, if texts are to begin with their year, as those of sources with a `date` do."""
    pair: str | None = None
    """The column of the second text, where a label belongs to a pair, such as an aspect and a sentence. A
    decoder reads the two as one text, with a line end between them."""
    label: str = "label"
    """The column of the class: texts or whole numbers."""
    unseen_classes: bool = False
    """Whether other rows may have classes that no training row has, and that nobody can get right, as in the
    paper's split of ChemProt."""
    metric: Literal["accuracy", "macro_f1", "micro_f1"] = "macro_f1"
    """The score that tables show, and that the best epoch is chosen by."""
    length: Length = 128
    """Tokens of an example, special tokens included; longer texts are cut, of a pair the longer one first."""
    epochs: Count = 5
    """How often each training example is seen."""
    batch_size: BatchSize = 16
    """Examples per step, over all devices."""
    learning_rate: PositiveFloat = 3e-5
    """The highest learning rate."""
    sizes: Sizes | None = None
    """What the tables must hold; others are refused."""


@settings
class ClozeSettings:
    name: Name
    """What the scores and the report call it."""
    path: AnyPath
    """A JSONL file or a glob: a sentence with a blank, and the one word that belongs there."""
    sentence: str = "sentence"
    """The field with the sentence."""
    answer: str = "answer"
    """The field with the answer."""
    blank: str = "[MASK]"
    """What stands for the blank, once in every sentence."""
    candidates: str | None = None
    """Of a decoder: the field with a list of what may stand in the blank, the answer among it. The candidate
    counts whose sentence is the most likely. Null asks only for facts whose blank comes last, and for what
    the decoder itself goes on with."""
    knowledge: Literal["kept", "updated", "new"] | None = None
    """Whether training should keep these facts, change them or bring them; FUAR needs a set of each."""


@settings
class ChoicesSettings:
    name: Name
    """What the scores and the report call it."""
    domain: Name | None = None
    """The domain whose knowledge it asks for; questions without one ask for general knowledge."""
    table: Table
    """The questions, one a row."""
    context: str = "context"
    """The column with what is read before a choice, such as a question."""
    choices: str | tuple[str, ...] = "choices"
    """The column with the list of the choices, or the columns of the choices, in order."""
    answer: str = "answer"
    """The column with the right choice: its text or, if it is none of the texts, its place from 0."""
    between: str = " "
    """What stands between a context and a choice."""
    metric: Literal["acc", "acc_norm"] = "acc_norm"
    """The score that tables show; both are kept. `acc`: the choice with the largest log probability counts;
    `acc_norm`: the one with the largest by byte."""
    length: Length = 1024
    """Tokens of a context and a choice, at most; a longer context loses its beginning."""


@settings
class MinimalPairsSettings:
    name: Name
    """What the scores and the report call it."""
    path: AnyPath
    """A JSONL file or a glob: two sentences that differ in one thing, one of them right, such as BLiMP's."""
    good: str = "sentence_good"
    """The field with the right sentence."""
    bad: str = "sentence_bad"
    """The field with the other."""


@settings
class HarnessSettings:
    tasks: Annotated[tuple[str, ...], Field(min_length=1)]
    """Names of tasks, as in `lm_eval --tasks`: those that the harness brings, whose data it fetches, or those
    of your own files."""
    include_path: AnyPath | None = None
    """A directory with task files of your own. The harness runs the Python functions that these name."""
    metric: str = "acc"
    """The score that tables show, of every task; all are kept."""
    few_shot: CountOrZero | None = None
    """Examples before each question; null is as many as the task says."""
    limit: Count | None = None
    """Questions of a task, at most: the first ones."""
    batch_size: Count = 8
    """Texts at a time."""
    device: str = "cpu"
    """Where PyTorch computes, such as cuda:0; JAX needs a GPU's memory, too."""


@settings
class BeamSettings:
    runner: str = "DirectRunner"
    """What runs it, by Apache Beam's name: DirectRunner (this machine), DataflowRunner, FlinkRunner, ..."""
    options: str = ""
    """The runner's options, as on a command line: `--project=mine --region=europe-west4`."""
    directory: AnyPath | None = None
    """Where workers write and this machine reads, such as gs://bucket/das; `data.cache_dir` when absent."""
