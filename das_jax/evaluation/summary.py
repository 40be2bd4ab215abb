"""What runs amount to: matrices over seeds, the measures taken from them, their cost."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from das_jax.config.schema import Config
from das_jax.errors import UserError
from das_jax.evaluation.measures import Matrix, fuar
from das_jax.evaluation.scores import RunScores, read_scores, runs_of
from das_jax.evaluation.statistics import Estimate, estimate, paired_difference
from das_jax.training.metrics import read_lines
from das_jax.training.run_directory import RunDirectory

Kind = Literal["tasks", "heldout", "cloze"]

MEASURES = {
    "OP": Matrix.overall,
    "F": Matrix.forgetting,
    "forgetting rate": Matrix.forgetting_rate,
    "BWT": Matrix.backward_transfer,
    "FWT": Matrix.forward_transfer,
    "plasticity": Matrix.plasticity,
    "X-Delta": Matrix.general_delta,
}
MEANINGS = {
    "OP": "overall performance: the mean over the domains after the last one",
    "F": "forgetting: the best score before the last domain, less the last; less is better",
    "forgetting rate": "the score right after learning a domain, less the last; less is better",
    "BWT": "backward transfer: the last score, less the one right after learning",
    "FWT": "forward transfer: the score before a domain is learned, less the first model's",
    "plasticity": "the score after learning a domain, less the one before",
    "X-Delta": "general knowledge: the last score, less the first model's",
}
LESS_IS_BETTER = {"F", "forgetting rate"}


@dataclass(frozen=True)
class ScoreTable:
    """One matrix, over seeds.

    Attributes:
      unit: of the values.
      larger_is_better: false for losses.
      rows: the models: `base model`, the warm-up if there was one, and every learned domain.
      start: the number of the row that the first domain began with.
      columns: the tasks or texts.
      domains: of every column the number of its domain, from 1; 0 for general knowledge.
      values_NxRxC: N samples, NaN where nothing was measured.
      samples: what the N samples are: `pre-training` or `fine-tuning` seeds.
      baselines: scores without any language model, {name: one per column}.
    """

    unit: str
    larger_is_better: bool
    rows: tuple[str, ...]
    start: int
    columns: tuple[str, ...]
    domains: tuple[int, ...]
    values_NxRxC: np.ndarray
    samples: str
    baselines: dict[str, list[float]]

    def cell(self, row: int, column: int) -> Estimate | None:
        """The mean over samples and its interval; None where nothing was measured."""
        values_N = self.values_NxRxC[:, row, column]
        return None if np.isnan(values_N).any() else estimate(values_N)

    def measures(self) -> dict[str, np.ndarray]:
        """Every measure that is defined, [N]. The first row counted is `start`; columns that are not
        complete are left out. OP of a loss is a loss; all others are gains or losses of score.
        """
        values = self.values_NxRxC[:, self.start :]
        complete = ~np.isnan(values).any(axis=(0, 1))
        sign = 1 if self.larger_is_better else -1
        domains = tuple(d for d, whole in zip(self.domains, complete, strict=True) if whole)
        matrix = Matrix(sign * values[:, :, complete], domains)
        measured = {name: measure(matrix) for name, measure in MEASURES.items()}
        found = {name: value for name, value in measured.items() if value is not None}
        if "OP" in found:
            found["OP"] = sign * found["OP"]
        return found


@dataclass(frozen=True)
class Cost:
    """What training took, all stages and seeds together."""

    tokens: float
    flops: float
    seconds: float


@dataclass(frozen=True)
class Summary:
    """One run, or the runs of one configuration with several seeds.

    Attributes:
      name: of its directory.
      runs: every seed's.
      tables: the matrices that there are.
      fuar: lost for gained knowledge; None where its three sets of facts are not all there.
      cost: of training.
    """

    name: str
    runs: tuple[RunScores, ...]
    tables: dict[Kind, ScoreTable]
    fuar: Estimate | None
    cost: Cost

    @property
    def config(self) -> Config:
        """Of the first seed."""
        return self.runs[0].config


def summarise(path: Path) -> Summary:
    """Reads a run, or a directory with a run per seed.

    Raises:
      UserError: there is no run, one has no scores, or the seeds are not equally far.
    """
    runs = tuple(read_scores(directory) for directory in runs_of(path))
    for run in runs[1:]:
        if (run.rows, list(run.tasks), list(run.cloze)) != (
            runs[0].rows,
            list(runs[0].tasks),
            list(runs[0].cloze),
        ):
            raise UserError(
                f"{run.directory} and {runs[0].directory} are not equally far; finish all seeds with "
                "das-jax pretrain and das-jax evaluate"
            )
    tables: dict[Kind, ScoreTable] = {"heldout": _heldout(runs)}
    if runs[0].tasks:
        tables["tasks"] = _tasks(runs)
    if runs[0].cloze:
        tables["cloze"] = _cloze(runs)
    return Summary(path.resolve().name, runs, tables, _fuar(runs), _cost(runs))


def _heldout(runs: tuple[RunScores, ...]) -> ScoreTable:
    first = runs[0]
    texts = tuple(first.heldout[first.rows[0]])
    values = [[[run.heldout[row][text] for text in texts] for row in run.rows] for run in runs]
    return _table(first, "nats per masked token", False, texts, texts, np.array(values))


def _tasks(runs: tuple[RunScores, ...]) -> ScoreTable:
    """Samples are pre-training seeds if there are several, else fine-tuning seeds."""
    first = runs[0]
    names = tuple(first.tasks)
    metrics = {task["metric"] for task in first.tasks.values()}
    samples = min(
        len(next(iter(row["scores"].values())))
        for run in runs
        for task in run.tasks.values()
        for row in task["rows"].values()
    )
    values = np.full((len(runs), samples, len(first.rows), len(names)), np.nan)
    for k, run in enumerate(runs):
        for c, name in enumerate(names):
            task = run.tasks[name]
            for r, row in enumerate(first.rows):
                if row in task["rows"]:
                    values[k, :, r, c] = task["rows"][row]["scores"][task["metric"]][:samples]
    several = len(runs) > 1
    kept = list(first.tasks.values())
    return _table(
        first,
        ", ".join(sorted(metrics)).replace("_", "-"),
        True,
        names,
        tuple(task["domain"] for task in kept),
        values.mean(axis=1) if several else values[0],
        "pre-training" if several else "fine-tuning",
        {
            baseline: [task["baselines"][baseline][task["metric"]] for task in kept]
            for baseline in kept[0]["baselines"]
        },
    )


def _cloze(runs: tuple[RunScores, ...]) -> ScoreTable:
    first, names = runs[0], tuple(runs[0].cloze)
    values = [
        [
            [run.cloze[name]["rows"].get(row, {}).get("precision", np.nan) for name in names]
            for row in first.rows
        ]
        for run in runs
    ]
    general = tuple(None for _ in names)
    return _table(first, "precision at 1", True, names, general, np.array(values))


def _table(
    run: RunScores,
    unit: str,
    larger_is_better: bool,
    columns: tuple[str, ...],
    domains: tuple[str | None, ...],
    values_NxRxC: np.ndarray,
    samples: str = "pre-training",
    baselines: dict[str, list[float]] | None = None,
) -> ScoreTable:
    order = [domain.name for domain in run.config.domains]
    numbers = tuple(order.index(name) + 1 if name in order else 0 for name in domains)
    return ScoreTable(
        unit,
        larger_is_better,
        run.rows,
        run.rows.index(run.start) if run.start in run.rows else 0,
        columns,
        numbers,
        values_NxRxC,
        samples,
        baselines or {},
    )


def _fuar(runs: tuple[RunScores, ...]) -> Estimate | None:
    ratios = []
    for run in runs:
        change: dict[str, list[float]] = {"kept": [], "updated": [], "new": []}
        for facts in run.cloze.values():
            rows = facts["rows"]
            if facts["knowledge"] in change and run.start in rows and run.rows[-1] in rows:
                difference = rows[run.rows[-1]]["precision"] - rows[run.start]["precision"]
                change[facts["knowledge"]].append(difference)
        if not all(change.values()):
            return None
        ratio = fuar(*(np.array(change[name]) for name in ("kept", "updated", "new")))
        if ratio is None:
            return None
        ratios.append(ratio)
    return estimate(np.array(ratios))


def _cost(runs: tuple[RunScores, ...]) -> Cost:
    tokens = flops = seconds = 0.0
    for run in runs:
        for stage in stage_directories(run.directory):
            before = 0
            for record in map(json.loads, read_lines(stage / "metrics.jsonl")):
                took = record["seconds_per_step"] * (record["step"] - before)
                before = record["step"]
                seconds += took
                tokens += record["tokens_per_second"] * took
                flops += record["flops_per_second"] * took
    return Cost(tokens, flops, seconds)


def stage_directories(run: Path) -> list[Path]:
    """The directories of a run's stages, in order."""
    return sorted(path for path in run.glob("[0-9][0-9]-*") if path.is_dir())


def check_comparable(summaries: list[Summary]) -> None:
    """Raises UserError unless all were measured on the same tasks, facts and texts."""
    first = summaries[0]
    for other in summaries[1:]:
        for kind, name, one, two in (
            ("tasks", "the end tasks", _keys(first, "tasks"), _keys(other, "tasks")),
            ("facts", "the cloze facts", _keys(first, "cloze"), _keys(other, "cloze")),
            ("texts", "the model or the texts", _inputs(first), _inputs(other)),
        ):
            if one != two:
                different = sorted(key for key in one | two if one.get(key) != two.get(key))
                raise UserError(
                    f"{first.name} and {other.name} cannot be compared: {name} differ "
                    f"({', '.join(different)}); evaluate both on the same {kind}"
                )


def _keys(summary: Summary, kind: Literal["tasks", "cloze"]) -> dict[str, str]:
    return {name: entry["key"] for name, entry in getattr(summary.runs[0], kind).items()}


def _inputs(summary: Summary) -> dict[str, str]:
    return RunDirectory(summary.runs[0].directory).inputs()


def difference(summary: Summary, reference: Summary, kind: Kind, measure: str) -> Estimate | None:
    """A measure of one summary less that of another, paired by seed; None if the seeds do not pair."""
    tables = summary.tables.get(kind), reference.tables.get(kind)
    if tables[0] is None or tables[1] is None or tables[0].samples != tables[1].samples:
        return None
    seeds = [[run.config.seed for run in each.runs] for each in (summary, reference)]
    values = [table.measures().get(measure) for table in tables if table is not None]
    if seeds[0] != seeds[1] or values[0] is None or values[1] is None:
        return None
    return paired_difference(values[0], values[1])
