"""What training logged, stage after stage along one axis of steps."""

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from das_jax.training.metrics import read_lines


@dataclass(frozen=True)
class Record:
    """One line of metrics.jsonl.

    Attributes:
      stage: the corpus that was learned.
      step: steps of the run until then, those of earlier stages included.
      steps: steps that the line speaks for.
      metrics: by name.
    """

    stage: str
    step: int
    steps: int
    metrics: dict[str, Any]


def stage_directories(run: Path) -> list[Path]:
    """The directories of a run's stages, in order."""
    return sorted(path for path in run.glob("[0-9][0-9]-*") if path.is_dir())


def stage_name(directory: Path) -> str:
    """The corpus that a stage learns."""
    return directory.name.partition("-")[2]


def read_records(run: Path) -> list[Record]:
    """All that the stages of a run logged."""
    records: list[Record] = []
    for stage in stage_directories(run):
        offset, lines = records[-1].step if records else 0, []
        with contextlib.suppress(OSError):  # `das_jax.training.lost` names what cannot be read.
            lines = read_lines(stage / "metrics.jsonl")
        for metrics in map(json.loads, lines):
            step = offset + metrics.pop("step")
            before = records[-1].step if records else 0
            records.append(Record(stage_name(stage), step, step - before, metrics))
    return records


def starts(records: list[Record]) -> dict[str, int]:
    """The step at which every stage began."""
    found: dict[str, int] = {}
    for record in records:
        found.setdefault(record.stage, record.step - record.steps)
    return found


def series(records: list[Record], metric: str) -> tuple[np.ndarray, np.ndarray]:
    """The steps at which a metric was logged, [N], and its values, [N]."""
    points = [(each.step, each.metrics[metric]) for each in records if metric in each.metrics]
    steps, values = np.array(points, np.float64).reshape(-1, 2).T
    return steps, values


def over_seeds(records: list[list[Record]], metric: str) -> tuple[np.ndarray, np.ndarray]:
    """The steps at which every seed logged a metric, [N], and the values of S seeds, [S, N]."""
    known = [dict(zip(*series(each, metric), strict=True)) for each in records]
    steps = sorted(set.intersection(*(set(each) for each in known)))
    return np.array(steps), np.array([[each[step] for step in steps] for each in known])
