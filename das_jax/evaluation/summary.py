"""What runs amount to: matrices over seeds, the measures taken from them, their cost."""

import functools
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from das_jax.config.schema import Config
from das_jax.config.show import difference
from das_jax.errors import UserError
from das_jax.evaluation.curves import Record, read_records
from das_jax.evaluation.measures import fuar
from das_jax.evaluation.protection import Protection, protection_of
from das_jax.evaluation.score_table import (
    TITLES,
    Kind,
    ScoreTable,
    cloze_table,
    heldout_table,
    probe_table,
    task_table,
)
from das_jax.evaluation.scores import PROBES, RunScores, read_scores, runs_of
from das_jax.evaluation.statistics import Estimate, estimate
from das_jax.training.run_directory import RunDirectory, may_change


@dataclass(frozen=True)
class Cost:
    """What the steps of training took, all stages of one run; the mean over seeds."""

    tokens: float
    flops: float
    seconds: float


@dataclass(frozen=True)
class Summary:
    """One run, or the runs of one configuration with several seeds.

    Attributes:
      name: what it is called beside others.
      path: its directory, or that of its seeds.
      runs: every seed's.
      tables: the matrices that there are.
      fuar_N: lost for gained knowledge, of every seed; None where its three sets of facts are not all there.
    """

    name: str
    path: Path
    runs: tuple[RunScores, ...]
    tables: dict[Kind, ScoreTable]
    fuar_N: np.ndarray | None

    @property
    def config(self) -> Config:
        """Of the first seed."""
        return self.runs[0].config

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of pre-training."""
        return tuple(run.config.seed for run in self.runs)

    @functools.cached_property
    def records(self) -> list[list[Record]]:
        """What training logged, of every seed."""
        return [read_records(run.directory) for run in self.runs]

    @functools.cached_property
    def cost(self) -> Cost:
        """Of training."""
        tokens = flops = seconds = 0.0
        for record in itertools.chain(*self.records):
            took = record.metrics.get("seconds_per_step", 0.0) * record.steps
            seconds += took
            tokens += record.metrics.get("tokens_per_second", 0.0) * took
            flops += record.metrics.get("flops_per_second", 0.0) * took
        runs = len(self.runs)
        return Cost(tokens / runs, flops / runs, seconds / runs)

    @functools.cached_property
    def protection(self) -> Protection | None:
        """What the method protects; None if it protects nothing."""
        return protection_of(self.runs)

    def samples(self, kind: Kind) -> dict[str, np.ndarray]:
        """Every measure of a matrix that is defined, [N] by its samples."""
        found = self.tables[kind].measures() if kind in self.tables else {}
        return (
            {**found, "FUAR": self.fuar_N} if kind == "cloze" and self.fuar_N is not None else found
        )

    def measures(self, kind: Kind) -> dict[str, Estimate]:
        """Every measure of a matrix that is defined, with its interval."""
        return {name: estimate(values_N) for name, values_N in self.samples(kind).items()}


def summarise(path: Path, name: str | None = None) -> Summary:
    """Reads a run, or a directory with a run per seed.

    Args:
      path: the directory.
      name: what to call it; the directory's own name if None.

    Raises:
      UserError: there is no run, one has no scores, or the seeds are not of one configuration and equally
        far.
    """
    return summary_of(tuple(map(read_scores, runs_of(path))), path, name or path.resolve().name)


def summary_of(runs: tuple[RunScores, ...], path: Path, name: str) -> Summary:
    """What the runs of a configuration's seeds amount to.

    Args:
      runs: of each seed.
      path: where they are.
      name: what to call them.

    Raises:
      UserError: they are not of one configuration and equally far.
    """
    for other in runs[1:]:
        _check_seeds(runs[0], other)
    if len({run.config.seed for run in runs}) < len(runs):
        raise UserError(f"two runs in {path} have the same seed; keep one of them")
    tables: dict[Kind, ScoreTable] = {}
    if runs[0].tasks:
        tables["tasks"] = task_table(runs)
    tables["heldout"] = heldout_table(runs)
    if runs[0].cloze:
        tables["cloze"] = cloze_table(runs)
    for kind in runs[0].probes:
        tables[kind] = probe_table(runs, kind)
    return Summary(name, path, runs, tables, _fuar(runs))


def _check_seeds(one: RunScores, other: RunScores) -> None:
    """Raises UserError unless two runs differ in nothing but the seed."""
    changed = [key for key, _, _ in difference(one.config, other.config)]
    changes = [key for key in changed if not (may_change(key) or key.startswith("seed"))]
    if changes:
        raise UserError(
            f"{other.directory} and {one.directory} are not seeds of one configuration: "
            f"{', '.join(changes)} differ; give them to das-jax report one by one"
        )
    if (one.rows, identity(one)) != (other.rows, identity(other)):
        raise UserError(
            f"{other.directory} and {one.directory} are not equally far, or not measured on the same; "
            "finish all seeds with das-jax pretrain and das-jax evaluate"
        )


def identity(run: RunScores) -> dict[str, dict[str, Any]]:
    """What must be equal in runs that are compared, {what: {name: identity}}."""
    inputs = RunDirectory(run.directory).inputs()
    model = f"the model {run.config.model.path}"
    settings = {
        "evaluation.examples": run.config.evaluation.examples,
        "training.mask_rate": run.config.training.mask_rate,
    }
    return {
        "the models or the texts": {
            ("the model" if name == model else name): value for name, value in inputs.items()
        },
        "the settings of the held-out loss": settings,
        "the domains learned so far": dict.fromkeys(run.learned),
        "the end tasks": {name: task["key"] for name, task in run.tasks.items()},
        "the cloze facts": {name: facts["key"] for name, facts in run.cloze.items()},
        **{
            f"the {TITLES[kind]}": {
                name: each["key"] for name, each in run.probes.get(kind, {}).items()
            }
            for kind in PROBES
        },
    }


def _fuar(runs: tuple[RunScores, ...]) -> np.ndarray | None:
    ratios = []
    for run in runs:
        change: dict[str, list[float]] = {"kept": [], "updated": [], "new": []}
        for facts in run.cloze.values():
            rows = facts["rows"]
            if facts["knowledge"] in change and run.start in rows and run.rows[-1] in rows:
                gain = rows[run.rows[-1]]["precision"] - rows[run.start]["precision"]
                change[facts["knowledge"]].append(gain)
        if not all(change.values()):
            return None
        ratio = fuar(*(np.array(change[name]) for name in ("kept", "updated", "new")))
        if ratio is None:
            return None
        ratios.append(ratio)
    return np.array(ratios)
