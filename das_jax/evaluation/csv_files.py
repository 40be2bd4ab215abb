"""What the report says, as CSV files."""

import csv
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from das_jax.evaluation.comparison import rank, rankings, relative_flops
from das_jax.evaluation.statistics import Estimate
from das_jax.evaluation.summary import Summary
from das_jax.files import write_text

NAMES = ("scores", "measures", "ranks", "costs", "metrics", "importance", "agreement")
FILES = tuple(f"{name}.csv" for name in NAMES)

Rows = Iterable[Sequence[Any]]


def write_csv_files(summaries: Sequence[Summary], directory: Path) -> None:
    """Writes scores, measures, ranks, costs, metrics, importance and agreement, a file each."""
    tables: dict[str, tuple[str, Rows]] = {
        "scores": ("run kind unit row column samples seed value", _scores(summaries)),
        "measures": ("run kind measure samples number mean low high", _measures(summaries)),
        "ranks": (
            "kind measure rank run mean low high reference difference difference_low difference_high "
            "samples number shown",
            _ranks(summaries),
        ),
        "costs": ("run seeds tokens flops seconds relative_flops", _costs(summaries)),
        "metrics": ("run seed stage step metric value", _metrics(summaries)),
        "importance": ("run map kind layer units raw free", _importance(summaries)),
        "agreement": ("run kind map other spearman overlap chance", _agreement(summaries)),
    }
    for name in NAMES:
        write_csv(directory / f"{name}.csv", *tables[name])


def write_csv(path: Path, header: str, rows: Rows) -> None:
    """Writes a table under the names in `header`, which spaces part."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(header.split())
    writer.writerows([_cell(value) for value in row] for row in rows)
    write_text(path, file.getvalue())


def _cell(value: Any) -> Any:
    """Empty where there is no number."""
    return None if isinstance(value, float | np.floating) and not math.isfinite(value) else value


def _scores(summaries: Sequence[Summary]) -> Iterator[Sequence[Any]]:
    """Every sample of every cell; a baseline is a row without a seed."""
    for summary in summaries:
        for kind, table in summary.tables.items():
            head = summary.name, kind, table.unit
            for r, row in enumerate(table.rows):
                for c, column in enumerate(table.columns):
                    for seed, value in zip(table.seeds, table.values_NxRxC[:, r, c], strict=True):
                        if value == value:
                            yield *head, row, column, table.samples, seed, value
            for baseline, values in table.baselines.items():
                for column, value in zip(table.columns, values, strict=True):
                    if value == value:
                        yield *head, baseline, column, "", "", value


def _measures(summaries: Sequence[Summary]) -> Iterator[Sequence[Any]]:
    for summary in summaries:
        for kind, table in summary.tables.items():
            for name, value in summary.measures(kind).items():
                yield summary.name, kind, name, table.samples, value.samples, *interval_of(value)


def _ranks(summaries: Sequence[Summary]) -> Iterator[Sequence[Any]]:
    if len(summaries) > 1:
        for kind, measure in rankings(summaries):
            for place, ranked in enumerate(rank(summaries, kind, measure), start=1):
                run, value, difference, shown = ranked
                interval = ("", "", "") if difference is None else interval_of(difference)
                reference = "" if difference is None else summaries[0].name
                samples = run.tables[kind].samples, value.samples, shown
                yield (
                    kind,
                    measure,
                    place,
                    run.name,
                    *interval_of(value),
                    reference,
                    *interval,
                    *samples,
                )


def interval_of(value: Estimate) -> tuple[Any, Any, Any]:
    """Mean and Student's t interval; None, which csv leaves empty, where there is no interval."""
    return value.mean, value.low, value.high


def _costs(summaries: Sequence[Summary]) -> Iterator[Sequence[Any]]:
    for summary in summaries:
        cost = summary.cost
        relative = relative_flops(summary, summaries[0])
        yield summary.name, len(summary.seeds), cost.tokens, cost.flops, cost.seconds, relative


def _metrics(summaries: Sequence[Summary]) -> Iterator[Sequence[Any]]:
    for summary in summaries:
        for seed, records in zip(summary.seeds, summary.records, strict=True):
            for record in records:
                for metric, value in record.metrics.items():
                    yield summary.name, seed, record.stage, record.step, metric, value


def _importance(summaries: Sequence[Summary]) -> Iterator[Sequence[Any]]:
    for summary in summaries:
        if (protection := summary.protection) is not None:
            for kind, units in protection.units.items():
                raw_MxL, free_MxL = protection.raw_MxL[kind], protection.free_MxL[kind]
                for m, name in enumerate(protection.maps):
                    for layer, values in enumerate(zip(raw_MxL[m], free_MxL[m], strict=True)):
                        yield summary.name, name, kind, layer, units, *values


def _agreement(summaries: Sequence[Summary]) -> Iterator[Sequence[Any]]:
    """Of a map with itself: of the two halves of its sample."""
    for summary in summaries:
        if (protection := summary.protection) is not None:
            for kind, agreement in protection.agreement.items():
                for i, one in enumerate(protection.maps):
                    for j, other in enumerate(protection.maps):
                        pair = agreement.correlation_MxM[i, j], agreement.overlap_MxM[i, j]
                        yield summary.name, kind, one, other, *pair, agreement.chance
