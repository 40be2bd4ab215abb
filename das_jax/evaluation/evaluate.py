"""All matrices of a run: end tasks and facts, before the first domain and after every stage."""

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from das_jax.config.schema import Config, EvaluationSettings
from das_jax.errors import UserError
from das_jax.evaluation.columns import Column, columns_of
from das_jax.evaluation.samples import FILE, check_samples, write_samples
from das_jax.evaluation.scores import KINDS, Evaluation, runs_of
from das_jax.files import sweep
from das_jax.methods.net import Mixture, Net, mixed
from das_jax.model import huggingface
from das_jax.training.console import Console
from das_jax.training.distributed import on_first_host
from das_jax.training.memory_advice import advising
from das_jax.training.run_directory import BASE, RunDirectory
from das_jax.training.serving import RunHistory, view
from das_jax.training.stages import Stage, stages_of
from das_jax.training.workspace import Workspace, open_workspace


def evaluate(path: Path, tasks: EvaluationSettings | None, console: Console) -> None:
    """Fills the matrices of a run, or of the runs of all its seeds; what is done is skipped.

    Args:
      path: the run.
      tasks: what to evaluate it on, in place of its own configuration's.
      console: where a person watches.

    Raises:
      UserError: it is no run, has no checkpoints or no tasks, or a task needs mending.
    """
    for directory in runs_of(path):
        run = RunDirectory(directory)
        config = run.config()
        if tasks is not None:
            config = dataclasses.replace(config, evaluation=tasks)
        if not any(getattr(config.evaluation, kind) for kind in (*KINDS, "prompts")):
            raise UserError(
                f"{directory} has nothing to measure, no evaluation.tasks, cloze and the like; give a "
                "configuration that has some with --tasks=CONFIG"
            )
        rows = rows_of(run, config)
        with _locked(directory):
            on_first_host(lambda: sweep(directory, "evaluation.json", FILE))  # noqa: B023
            workspace = open_workspace(config, console)
            with advising(config, console.log, "evaluation"):
                RunEvaluation(workspace, run, rows).measure_all()


def rows_of(run: RunDirectory, config: Config) -> dict[str, Stage | None]:
    """When to measure: before anything was learned, and after every finished stage.

    Raises:
      UserError: no stage is finished.
    """
    finished = {
        stage.name: stage
        for stage in stages_of(config)
        if (run.stage(stage.number, stage.name) / "huggingface").is_dir()
    }
    if not finished:
        raise UserError(
            f"{run.path} has no finished stage yet; run das-jax pretrain first, then evaluate it"
        )
    return {BASE: None, **finished}


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Keeps others from evaluating the same run; training may go on beside it."""

    def lock() -> None:
        try:
            stack.enter_context(FileLock(directory / ".evaluation.lock", timeout=0))
        except Timeout as error:
            raise UserError(
                f"another process is evaluating {directory}; wait for its end or stop it"
            ) from error

    with contextlib.ExitStack() as stack:
        on_first_host(lock)
        yield


@dataclass(frozen=True)
class RunEvaluation:
    """One run's matrices, cell by cell; every cell is on disk as soon as it is known."""

    workspace: Workspace
    run: RunDirectory
    rows: dict[str, Stage | None]

    def measure_all(self) -> None:
        scores, console = Evaluation(self.run.evaluation), self.workspace.console
        columns = columns_of(self.workspace, scores.read())
        check_samples(self.workspace)
        on_first_host(lambda: scores.begin({(c.kind, c.name): c.about for c in columns}))
        config, checkpoint = self.workspace.config, self.workspace.checkpoint
        self.run.check_model(config, checkpoint.weights_hash())
        with console.progress(f"evaluating {self.run.path}", len(columns) * len(self.rows)) as line:
            for row, stage in self.rows.items():
                history, known = self._history(stage), Hashes()
                for column in line.counting(columns):
                    served, by = self._served(history, stage, column)
                    self._measure(scores, column, row, served, by, known)
                if config.evaluation.prompts:
                    net = self._last(history, stage)
                    weights = known.of(mixed(net))
                    write_samples(self.workspace, self.run.path, row, net, weights)

    def _history(self, stage: Stage | None) -> RunHistory:
        """The stages up to one; none before the first."""
        warm_up, domains = None, []
        for each in self.rows.values():
            if each is not None and stage is not None and each.number <= stage.number:
                if each.warms_up:
                    warm_up = each
                else:
                    domains.append(each)
        return RunHistory(self.workspace, self.run, warm_up, tuple(domains))

    def _served(
        self, history: RunHistory, stage: Stage | None, column: Column
    ) -> tuple[Mixture, str]:
        """Who serves a column after a stage, and by what name if nets were compared to find that out."""
        if stage is None or stage.warms_up or column.text is None:
            return mixed(self._last(history, stage)), ""
        method = self.workspace.method(stage.method_settings)
        found, compared = view(method, history, column.domain, column.text)
        served = mixed(found)
        if column.kind == "tasks":  # A classifier is made of one model.
            served = mixed(served.best)
        by = served if len(served.nets) > 1 else served.best
        return served, history.name_of(by) if compared else ""

    def _last(self, history: RunHistory, stage: Stage | None) -> Net:
        """What was exported last."""
        if stage is None or stage.warms_up:
            return history.base()
        return history.net(len(history.stages) - 1)

    def _measure(
        self,
        scores: Evaluation,
        column: Column,
        row: str,
        served: Mixture,
        by: str,
        known: "Hashes",
    ) -> None:
        """One cell, unless it is known."""
        place, weights = (column.kind, column.name, row), known.of(served)
        if on_first_host(lambda: scores.has(*place, weights)):
            return
        cell = {"weights": weights, **column.measure(served)}
        on_first_host(lambda: scores.write(*place, cell))
        said = f"after {row}, {column.name}: {_said(column, cell)}"
        self.workspace.console.log(f"{said}, served by {by}" if by else said)


class Hashes:
    """The hashes of what serves a row, each net's made once."""

    def __init__(self) -> None:
        self._known: list[tuple[Net, str]] = []

    def of(self, served: Mixture) -> str:
        """Of one net its own; of several, of theirs and their shares."""
        each = [self._net(net) for net in served.nets]
        if len(each) == 1:
            return each[0]
        return sha256(repr((each, served.weights)).encode()).hexdigest()

    def _net(self, net: Net) -> str:
        for other, found in self._known:
            if other.params is net.params and other.gates is net.gates:
                return found
        found = huggingface.weights_hash(net.model, net.params, net.gates)
        self._known.append((net, found))
        return found


def _said(column: Column, cell: dict[str, Any]) -> str:
    if column.kind == "cloze":
        return f"precision {cell['precision']:.3f}"
    value = cell["scores"][column.about["metric"]]
    value = sum(value) / len(value) if isinstance(value, list) else value
    return f"{column.about['metric']} {value:.3f}"
