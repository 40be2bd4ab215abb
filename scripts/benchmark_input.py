"""Measures how long the device waits for data, and tokenisation against HuggingFace datasets.map.

    python scripts/benchmark_input.py                  # both, on the demo corpora
    python scripts/benchmark_input.py --steps 5000 --pairs 9

Needs the extra `huggingface`. Every figure is a ratio of times within one run, so a busy machine makes it
worse but not wrong.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import datasets
import numpy as np
from etils import epath
from rich.console import Console
from rich.table import Table

from das_jax.data import corpus, demo, sources
from das_jax.data.batches import train_batches
from das_jax.data.tokenization import encoder, write_parts
from das_jax.model.huggingface import load_tokenizer

CACHE = Path("~/.cache/das_jax").expanduser()
NAMES = ("news", "acl", "reviews", "tweets")
LENGTH, BATCH_SIZE, STEP, WARM_UP = 128, 20, 0.005, 100
# datasets.map runs in that many processes; das_jax in as many threads.
PROCESSORS = len(os.sched_getaffinity(0))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000, help="steps of a waiting measurement")
    parser.add_argument("--repetitions", type=int, default=5, help="waiting measurements")
    parser.add_argument("--pairs", type=int, default=5, help="pairs of tokenisations")
    options = parser.parse_args()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    console, tokenizer = Console(), load_tokenizer(demo.model_directory("demo:bert-tiny", CACHE))
    tokenizer.model_max_length = 1 << 30  # transformers warns of long texts.

    table = Table(title=f"Waiting, share of {options.steps} steps of {STEP * 1e3:g} ms")
    for column in ("corpus", "median", "highest"):
        table.add_column(column, justify="left" if column == "corpus" else "right")
    for name in NAMES:
        source = sources.DemoSource(kind="demo", name=name)
        chunks = corpus.prepare(source, tokenizer, LENGTH, 0.05, CACHE).train
        shares = [waiting(chunks, seed, options.steps) for seed in range(options.repetitions)]
        table.add_row(name, f"{median(shares):.2%}", f"{max(shares):.2%}")
    console.print(table)

    table = Table(title=f"Documents per second, {PROCESSORS} processors, medians")
    for column in ("corpus", "work", "das_jax", "datasets.map", "ratio", "lowest", "highest"):
        table.add_column(column, justify="left" if column in ("corpus", "work") else "right")
    for name in NAMES:
        source = sources.DemoSource(kind="demo", name=name)
        documents = list(sources.documents(source, CACHE))
        for work, ours, theirs in (
            ("token ids", tokenise, map_tokens),
            ("chunks on disk", prepare, map_chunks),
        ):
            with on_disk(documents) as (text, dataset):
                pairs = [
                    (timed(ours, text, tokenizer), timed(theirs, dataset, tokenizer))
                    for _ in range(options.pairs)
                ]
            fast, slow = (len(documents) / median(times) for times in zip(*pairs, strict=True))
            ratios = [b / a for a, b in pairs]
            table.add_row(
                name,
                work,
                f"{fast:,.0f}",
                f"{slow:,.0f}",
                f"{median(ratios):.2f}",
                f"{min(ratios):.2f}",
                f"{max(ratios):.2f}",
            )
    console.print(table)


def waiting(chunks: corpus.Chunks, seed: int, steps: int) -> float:
    """The share of the time that a loop of fake steps spends in next()."""
    batches = train_batches(chunks, batch_size=BATCH_SIZE, seed=seed)
    for _ in range(WARM_UP):
        next(batches)
        time.sleep(STEP)
    waited, start = 0.0, time.perf_counter()
    for _ in range(steps):
        asked = time.perf_counter()
        next(batches)
        waited += time.perf_counter() - asked
        time.sleep(STEP)
    return waited / (time.perf_counter() - start)


@contextmanager
def on_disk(documents: list[str]) -> Iterator[tuple[Path, datasets.Dataset]]:
    """The same text as das_jax reads it, Parquet, and as `datasets` has it before a map: mapped Arrow."""
    with tempfile.TemporaryDirectory() as directory:
        text = Path(directory) / "text.parquet"
        datasets.Dataset.from_dict({"text": documents}).to_parquet(text)
        yield (
            text,
            datasets.Dataset.from_parquet(str(text), cache_dir=directory),
        )


def timed(work: Callable[..., None], *arguments: Any) -> float:
    with tempfile.TemporaryDirectory() as directory:
        start = time.perf_counter()
        work(*arguments, Path(directory))
        return time.perf_counter() - start


def tokenise(text: Path, tokenizer: Any, directory: Path) -> None:
    source = sources.ParquetSource(kind="parquet", path=str(text))
    documents = sources.documents(source, directory)
    write_parts(documents, encoder(tokenizer), 0.05, epath.Path(directory / "all"))


def prepare(text: Path, tokenizer: Any, directory: Path) -> None:
    source = sources.ParquetSource(kind="parquet", path=str(text))
    corpus.prepare(source, tokenizer, LENGTH, 0.05, directory)


def map_tokens(dataset: datasets.Dataset, tokenizer: Any, directory: Path) -> datasets.Dataset:
    def encode(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        ids = tokenizer(
            batch["text"],
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        return {"input_ids": ids["input_ids"]}

    return mapped(dataset, encode, directory / "tokens.arrow", "text")


def map_chunks(dataset: datasets.Dataset, tokenizer: Any, directory: Path) -> None:
    """As in the language modelling examples of transformers: concatenated and cut, batch by batch."""
    body = LENGTH - 2
    first, separator = tokenizer.cls_token_id, tokenizer.sep_token_id

    def group(batch: dict[str, list[list[int]]]) -> dict[str, np.ndarray]:
        stream = np.concatenate([np.array([*ids, separator]) for ids in batch["input_ids"]])
        rows = len(stream) // body
        chunks = np.empty((rows, LENGTH), np.int32)
        chunks[:, 0], chunks[:, -1] = first, separator
        chunks[:, 1:-1] = stream[: rows * body].reshape(rows, body)
        return {"tokens": chunks}

    tokens = map_tokens(dataset, tokenizer, directory)
    mapped(tokens, group, directory / "chunks.arrow", "input_ids")


def mapped(
    dataset: datasets.Dataset, function: Callable, path: Path, column: str
) -> datasets.Dataset:
    # One thread in each process: with as many processes as processors, more would only disturb.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        return dataset.map(
            function,
            batched=True,
            num_proc=PROCESSORS,
            remove_columns=[column],
            cache_file_name=str(path),
            load_from_cache_file=False,
        )
    finally:
        del os.environ["TOKENIZERS_PARALLELISM"]


if __name__ == "__main__":
    main()
