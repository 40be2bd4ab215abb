"""Matrices of scores over seeds, and the measures taken from them."""

import itertools
import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from das_jax.errors import UserError
from das_jax.evaluation.measures import Matrix
from das_jax.evaluation.scores import Probe, RunScores
from das_jax.evaluation.statistics import (
    ROUNDING,
    Estimate,
    Samples,
    Verdict,
    estimate,
    paired_difference,
    samples_note,
)
from das_jax.training.run_directory import BASE
from das_jax.training.stages import stages_of

Kind = Literal["tasks", "heldout", "cloze", Probe]
TITLES: dict[Kind, str] = {
    "tasks": "end tasks",
    "heldout": "held-out loss",
    "cloze": "cloze facts",
    "choices": "multiple choice",
    "minimal_pairs": "minimal pairs",
    "harness": "lm-evaluation-harness",
}

MEASURES = {
    "OP": Matrix.overall,
    "F": Matrix.forgetting,
    "forgetting rate": Matrix.forgetting_rate,
    "BWT": Matrix.backward_transfer,
    "FWT": Matrix.forward_transfer,
    "plasticity": Matrix.plasticity,
    "X-Delta": Matrix.general_delta,
}
OF_DOMAINS = ("F", "forgetting rate", "BWT", "FWT", "plasticity")
"""Measures of what a domain does to another, which are defined where one is learned after the other."""
MEANINGS = {
    "OP": "overall performance: the mean over the domains after the last one",
    "F": "forgetting: the best score before the last domain, less the last; less is better",
    "forgetting rate": "the score right after learning a domain, less the last; less is better",
    "BWT": "backward transfer: the last score, less the one right after learning",
    "FWT": "forward transfer: the score before a domain is learned, less the first model's",
    "plasticity": "the score after learning a domain, less the one before",
    "X-Delta": "general knowledge: the last score, less the first model's",
    "FUAR": "what was lost of kept facts for what was gained of updated and new ones; less is better",
}
LESS_IS_BETTER = {"F", "forgetting rate", "FUAR"}

SHADES = 5
"""Of a colour, for how large a change is."""

SHADE: dict[Kind, float] = {
    "tasks": 0.02,
    "heldout": 0.1,
    "cloze": 0.02,
    "choices": 0.02,
    "minimal_pairs": 0.02,
    "harness": 0.02,
}
"""The size of a change that a shade stands for where there is no noise to measure it by."""


@dataclass(frozen=True)
class ScoreTable:
    """One matrix, over seeds.

    Attributes:
      kind: what was measured.
      unit: of the values.
      larger_is_better: false for losses.
      rows: the models: `base model`, the warm-up if there was one, and one after every stage.
      start: the number of the row that the first domain began with.
      columns: the tasks or texts.
      domains: of every column the number of the stage that learns its domain, from 1; 0 for general
        knowledge, -1 for neither.
      values_NxRxC: N samples, NaN where nothing was measured.
      samples: what the N samples are: `pre-training` or `fine-tuning` seeds. Of several pre-training seeds,
        which alone tell what another run would give, every sample is a mean over fine-tuning seeds.
      seeds: the seed of every sample.
      baselines: scores without any language model, {name: one per column}, NaN where there is none.
      learned_at_once: how many domains each finished stage learned; one each if it is not said.
    """

    kind: Kind
    unit: str
    larger_is_better: bool
    rows: tuple[str, ...]
    start: int
    columns: tuple[str, ...]
    domains: tuple[int, ...]
    values_NxRxC: np.ndarray
    samples: Samples
    seeds: tuple[int, ...]
    baselines: dict[str, list[float]]
    learned_at_once: tuple[int, ...] = ()

    def place(self, row: int) -> int:
        """How many domains are learned in a row, negative before the one that the first domain began with."""
        done = row - self.start
        return sum(self.learned_at_once[:done]) if self.learned_at_once and done > 0 else done

    @property
    def title(self) -> str:
        """What its values are, and which are the better ones."""
        better = "more" if self.larger_is_better else "less"
        return f"{TITLES[self.kind]}, {self.unit} ({better} is better)"

    @property
    def warmed_up(self) -> bool:
        """Whether the first row counted is not the base model, but the one after the warm-up."""
        return self.start > 0

    def learned(self, row: int, column: int) -> bool:
        """Whether the row is the model that has just learned the column's domain, or warmed up on it."""
        number = self.domains[column]
        if number > 0:
            return row == self.start + number
        return row == self.start > 0 and self.columns[column] == self.rows[row]

    def note(self) -> str:
        """What its means and intervals are taken over."""
        note = samples_note(self.samples, self.seeds)
        nested = self.kind == "tasks" and self.samples == "pre-training"
        return f"{note} Each of them is a mean over fine-tuning seeds." if nested else note

    def cell(self, row: int, column: int) -> Estimate | None:
        """The mean over samples and its interval; None where nothing was measured.

        The base model is the same for every pre-training seed, so it has no interval over them.
        """
        values_N = self.values_NxRxC[:, row, column]
        if np.isnan(values_N).any():
            return None
        if self.rows[row] == BASE and self.samples == "pre-training":
            return estimate([values_N.mean()])
        return estimate(values_N)

    def change(self, row: int, column: int) -> Estimate | None:
        """What a cell is above the same column of the row that the first domain began with, paired by seed;
        None for that row and those before it, and where nothing was measured.
        """
        values_NxR = self.values_NxRxC[:, :, column]
        pair = values_NxR[:, row], values_NxR[:, self.start]
        return None if row <= self.start or np.isnan(pair).any() else paired_difference(*pair)

    def verdict(self, row: int, column: int) -> Verdict:
        """What to think of a cell beside the row that the first domain began with."""
        change = self.change(row, column)
        return "" if change is None else change.verdict(self.larger_is_better)

    def shade(self, difference: Estimate) -> int:
        """How strong a colour a difference of values has, from 1 to `SHADES`: how often it is half of its
        interval or, where nothing tells the noise, its size on a scale that is always the same.
        """
        size, noise = abs(difference.mean), difference.half_width
        steps = math.floor(size / noise) if noise else math.ceil(size / SHADE[self.kind] - ROUNDING)
        return min(max(steps, 1), SHADES)

    def incomplete(self) -> tuple[str, ...]:
        """The columns that no measure counts, as a row of them was not measured."""
        missing_C = np.isnan(self.values_NxRxC[:, self.start :]).any(axis=(0, 1))
        return tuple(name for name, hole in zip(self.columns, missing_C, strict=True) if hole)

    def less_is_better(self, measure: str) -> bool:
        """Whether of two runs the one with the smaller value of a measure is the better."""
        return measure in LESS_IS_BETTER or (measure == "OP" and not self.larger_is_better)

    def measures(self) -> dict[str, np.ndarray]:
        """Every measure that is defined, [N]. The first row counted is `start`; columns that are not
        complete are left out. OP of a loss is a loss; all others are gains or losses of score.
        """
        values = self.values_NxRxC[:, self.start :]
        left_out = self.incomplete()
        complete = [c for c, name in enumerate(self.columns) if name not in left_out]
        sign = 1 if self.larger_is_better else -1
        domains = tuple(self.domains[c] for c in complete)
        matrix = Matrix(sign * values[:, :, complete], domains)
        together = any(count > 1 for count in self.learned_at_once)
        measured = {
            name: measure(matrix)
            for name, measure in MEASURES.items()
            if not (together and name in OF_DOMAINS)
        }
        found = {name: value for name, value in measured.items() if value is not None}
        if "OP" in found:
            found["OP"] = sign * found["OP"]
        return found


def heldout_table(runs: tuple[RunScores, ...]) -> ScoreTable:
    """The matrix of held-out losses of the seeds of one run."""
    first = runs[0]
    texts = tuple(first.heldout[first.rows[0]])
    values = [[[run.heldout[row][text] for text in texts] for row in run.rows] for run in runs]
    return _table(runs, "heldout", first.unit, texts, texts, np.array(values))


def task_table(runs: tuple[RunScores, ...]) -> ScoreTable:
    """The matrix of end tasks; samples are pre-training seeds if there are several, else the fine-tuning
    seeds that all rows have.
    """
    first = runs[0]
    names, tasks = tuple(first.tasks), list(first.tasks.values())
    metrics = {task["metric"].replace("_", "-").replace("f1", "F1") for task in tasks}
    rows = [row for run in runs for task in run.tasks.values() for row in task["rows"].values()]
    seeds = [seed for seed in rows[0]["seeds"] if all(seed in row["seeds"] for row in rows)]
    if not seeds:
        raise UserError(
            f"the end tasks of {first.directory} have no fine-tuning seed in common; measure all of them "
            "again with das-jax evaluate"
        )
    values = np.full((len(runs), len(seeds), len(first.rows), len(names)), np.nan)
    for (k, run), (c, name) in itertools.product(enumerate(runs), enumerate(names)):
        task = run.tasks[name]
        for r, row in enumerate(first.rows):
            if row in task["rows"]:
                entry = task["rows"][row]
                by_seed = dict(zip(entry["seeds"], entry["scores"][task["metric"]], strict=True))
                values[k, :, r, c] = [by_seed[seed] for seed in seeds]
    baselines = {
        baseline: [
            task["baselines"].get(baseline, {}).get(task["metric"], np.nan) for task in tasks
        ]
        for baseline in dict.fromkeys(name for task in tasks for name in task["baselines"])
    }
    domains = tuple(task["domain"] for task in tasks)
    unit = ", ".join(sorted(metrics))
    if len(runs) > 1:
        values_NxRxC = values.mean(axis=1)
        return _table(runs, "tasks", unit, names, domains, values_NxRxC, baselines=baselines)
    return _table(runs, "tasks", unit, names, domains, values[0], tuple(seeds), baselines)


def cloze_table(runs: tuple[RunScores, ...]) -> ScoreTable:
    """The matrix of cloze facts, the precision of the first guess."""
    first, names = runs[0], tuple(runs[0].cloze)
    values = [
        [
            [run.cloze[name]["rows"].get(row, {}).get("precision", np.nan) for name in names]
            for row in first.rows
        ]
        for run in runs
    ]
    table = _table(runs, "cloze", "precision at 1", names, (None,) * len(names), np.array(values))
    # What has changed or is new in a domain is no general knowledge; FUAR counts it.
    learned = [first.cloze[name]["knowledge"] in ("updated", "new") for name in names]
    return replace(table, domains=tuple(-1 if each else 0 for each in learned))


def probe_table(runs: tuple[RunScores, ...], kind: Probe) -> ScoreTable:
    """The matrix of another probe, each set by its own metric."""
    first = runs[0]
    sets = list(first.probes[kind].values())
    values = [
        [
            [
                each["rows"].get(row, {}).get("scores", {}).get(each["metric"], np.nan)
                for each in run.probes[kind].values()
            ]
            for row in first.rows
        ]
        for run in runs
    ]
    unit = ", ".join(sorted({each["metric"] for each in sets}))
    domains = tuple(each["domain"] for each in sets)
    return _table(runs, kind, unit, tuple(first.probes[kind]), domains, np.array(values))


def _table(
    runs: tuple[RunScores, ...],
    kind: Kind,
    unit: str,
    columns: tuple[str, ...],
    domains: tuple[str | None, ...],
    values_NxRxC: np.ndarray,
    fine_tuning_seeds: tuple[int, ...] = (),
    baselines: dict[str, list[float]] | None = None,
) -> ScoreTable:
    run = runs[0]
    stages = [stage.domains for stage in stages_of(run.config) if not stage.warms_up]
    numbers: dict[str | None, int] = {
        name: number for number, names in enumerate(stages, 1) for name in names
    }
    return ScoreTable(
        kind,
        unit,
        kind != "heldout",
        run.rows,
        run.rows.index(run.start) if run.start in run.rows else 0,
        columns,
        tuple(numbers.get(name, 0) for name in domains),
        values_NxRxC,
        "fine-tuning" if fine_tuning_seeds else "pre-training",
        fine_tuning_seeds or tuple(each.config.seed for each in runs),
        baselines or {},
        tuple(len(stage.domains) for stage in run.stages),
    )
