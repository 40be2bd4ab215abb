"""What was measured of a run, as files: the held-out losses that the run leaves, and its evaluation."""

import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NotRequired, get_args

from pydantic import FiniteFloat, TypeAdapter
from typing_extensions import TypedDict  # Pydantic reads that of typing from Python 3.12 on only.

from das_jax.config.schema import Config
from das_jax.errors import UserError
from das_jax.files import read_json, write_json
from das_jax.training.promise import promise, start_of
from das_jax.training.run_directory import AGAIN, RunDirectory
from das_jax.training.stages import Stage, stages_of

Probe = Literal["choices", "minimal_pairs", "harness"]
"""What is asked of a model as it is, and answered by one number for each metric."""
PROBES: tuple[Probe, ...] = get_args(Probe)
KINDS = ("tasks", "cloze", *PROBES)
"""The matrices of evaluation.json, in the order in which they are shown."""

SEED_DIRECTORY = "seed-*"
"""What a run with several `seeds` holds: a run for each."""


@dataclass(frozen=True)
class Evaluation:
    """runs/NAME/evaluation.json: end tasks, cloze facts and other probes.

    {"tasks": {TASK: {"key": ..., "domain": ..., "metric": ..., "classes": [...],
                      "baselines": {NAME: {METRIC: score}},
                      "rows": {ROW: {"weights": ..., "seeds": [...], "scores": {METRIC: [one per seed]}}}}},
     "cloze": {SET: {"key": ..., "knowledge": ..., "facts": ...,
                     "rows": {ROW: {"weights": ..., "precision": ...}}}},
     PROBE: {SET: {"key": ..., "domain": ..., "metric": ..., "questions": ...,
                   "rows": {ROW: {"weights": ..., "scores": {METRIC: score}}}}}}
    """

    path: Path

    def read(self) -> dict[str, dict[str, Any]]:
        """What was measured so far, for what measures more.

        Raises:
          UserError: the file is damaged.
        """
        return self._read(_COLUMNS)

    def read_whole(self) -> dict[str, dict[str, Any]]:
        """What was measured, every part of it looked at.

        Raises:
          UserError: the file is damaged.
        """
        return self._read(_EVALUATION)

    def _read(self, shape: TypeAdapter[Any]) -> dict[str, dict[str, Any]]:
        found = {}
        if self.path.exists():
            found = read_json(self.path, shape, "remove it and run das-jax evaluate again")
        return {kind: found.get(kind, {}) for kind in KINDS}

    def begin(self, columns: dict[tuple[str, str], dict[str, Any]]) -> None:
        """Writes down what is measured; scores of a column that is not what it was are forgotten.

        Args:
          columns: {(kind, name): what is written beside the scores}.
        """
        everything = self.read()
        for (kind, name), about in columns.items():
            old = everything[kind].get(name, {})
            rows = old["rows"] if old.get("key") == about["key"] else {}
            everything[kind][name] = {**about, "rows": rows}
        write_json(self.path, everything)

    def has(self, kind: str, name: str, row: str, weights: str) -> bool:
        """Whether the score of a model is known, and the model is still the same."""
        return self.read()[kind][name]["rows"].get(row, {}).get("weights") == weights

    def write(self, kind: str, name: str, row: str, cell: dict[str, Any]) -> None:
        """Puts one score in its place."""
        everything = self.read()
        everything[kind][name]["rows"][row] = cell
        write_json(self.path, everything)


class _Row(TypedDict):
    weights: str


class _Column(TypedDict):
    key: str
    rows: dict[str, _Row]


class _ColumnsFile(TypedDict):
    tasks: dict[str, _Column]
    cloze: dict[str, _Column]
    choices: NotRequired[dict[str, _Column]]
    minimal_pairs: NotRequired[dict[str, _Column]]
    harness: NotRequired[dict[str, _Column]]


class _TaskRow(TypedDict):
    weights: str
    seeds: list[int]
    scores: dict[str, list[FiniteFloat]]


class _Task(TypedDict):
    key: str
    domain: str | None
    metric: str
    classes: list[str]
    baselines: dict[str, dict[str, FiniteFloat]]
    rows: dict[str, _TaskRow]


class _FactsRow(TypedDict):
    weights: str
    precision: FiniteFloat


class _Facts(TypedDict):
    key: str
    knowledge: str | None
    facts: int
    rows: dict[str, _FactsRow]


class _ProbeRow(TypedDict):
    weights: str
    scores: dict[str, FiniteFloat]


class _Probe(TypedDict):
    key: str
    domain: str | None
    metric: str
    questions: int | None
    rows: dict[str, _ProbeRow]


class _EvaluationFile(TypedDict):
    tasks: dict[str, _Task]
    cloze: dict[str, _Facts]
    choices: NotRequired[dict[str, _Probe]]
    minimal_pairs: NotRequired[dict[str, _Probe]]
    harness: NotRequired[dict[str, _Probe]]


_COLUMNS = TypeAdapter(_ColumnsFile)
_EVALUATION = TypeAdapter(_EvaluationFile)


@dataclass(frozen=True)
class RunScores:
    """All that is known of one run.

    Attributes:
      directory: where it is.
      config: its configuration.
      rows: the models that were measured: `base model` and every stage that is finished.
      heldout: {row: {text: loss}}.
      unit: of these losses.
      tasks: {task: ...} as in `Evaluation`.
      cloze: {set: ...} as in `Evaluation`.
      validation: as `heldout`, on validation text, where there is some.
      probes: {kind: {set: ...}} as in `Evaluation`, of all other kinds.
    """

    directory: Path
    config: Config
    rows: tuple[str, ...]
    heldout: dict[str, dict[str, float]]
    tasks: dict[str, dict[str, Any]]
    cloze: dict[str, dict[str, Any]]
    unit: str
    validation: dict[str, dict[str, float]] = field(default_factory=dict)
    probes: dict[Probe, dict[str, dict[str, Any]]] = field(default_factory=dict)

    @property
    def start(self) -> str:
        """The row that the first domain began with: the model after the warm-up, if there was one."""
        return start_of(self.config)

    @property
    def promise(self) -> str | None:
        """Whether the run has kept `general.may_rise`; None where it promised nothing."""
        return promise(self.config, self.heldout)

    @property
    def learned(self) -> tuple[str, ...]:
        """The domains that are learned, in order."""
        return tuple(domain for stage in self.stages for domain in stage.domains)

    @functools.cached_property
    def stages(self) -> tuple[Stage, ...]:
        """The finished stages that learned domains, in order."""
        return tuple(
            each for each in stages_of(self.config) if not each.warms_up and each.name in self.rows
        )


def read_scores(directory: Path) -> RunScores:
    """What is known of a run.

    Raises:
      UserError: it is no run, or nothing of it was measured yet.
    """
    run = RunDirectory(directory)
    config, heldout = run.config(), run.scores()
    if not heldout:
        if any(directory.glob("[0-9][0-9]*-*/huggingface")):
            raise UserError(f"{directory / 'scores.json'} is lost; {AGAIN}")
        raise UserError(f"{directory} has no checkpoints yet; run das-jax pretrain first")
    evaluation = Evaluation(run.evaluation).read_whole()
    return RunScores(
        *(directory, config, tuple(heldout), heldout, evaluation["tasks"], evaluation["cloze"]),
        validation=run.scores("validation"),
        unit=run.unit(),
        probes={kind: evaluation[kind] for kind in PROBES if evaluation[kind]},
    )


def runs_of(path: Path) -> list[Path]:
    """The directories of one run, or of the runs that `seeds` made of one configuration.

    Raises:
      UserError: there is none.
    """
    if (path / "config.yaml").exists():
        return [path]
    seeds = sorted(
        (each for each in path.glob(SEED_DIRECTORY) if (each / "config.yaml").exists()),
        key=lambda each: (len(each.name), each.name),
    )
    if not seeds:
        raise UserError(
            f"{path} is no run of das-jax: it has no config.yaml; give an output_dir of das-jax pretrain"
        )
    return seeds
