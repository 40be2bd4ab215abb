"""All matrices of a run: end tasks and facts, before the first domain and after every stage."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import jax
import numpy as np
from filelock import FileLock, Timeout

from das_jax.config.schema import Config, EvaluationSettings
from das_jax.data.cloze import Facts, load_facts
from das_jax.data.settings import ClozeSettings, TaskSettings
from das_jax.data.tasks import Task, load_task
from das_jax.data.tokenization import USUAL_UNKNOWN
from das_jax.errors import UserError
from das_jax.evaluation.baselines import baselines
from das_jax.evaluation.cloze import precision
from das_jax.evaluation.finetune import Finetuned, finetune
from das_jax.evaluation.scores import Evaluation, runs_of
from das_jax.files import sweep
from das_jax.model import huggingface
from das_jax.model.classifier import Classifier
from das_jax.model.huggingface import Checkpoint
from das_jax.model.tokenizer_fit import leaves_out_types
from das_jax.outputs import check_free, creating
from das_jax.training.console import Console
from das_jax.training.distributed import on_first_host
from das_jax.training.results import BASE
from das_jax.training.run_directory import AGAIN, RunDirectory
from das_jax.training.sharding import check_divisible
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
        if not config.evaluation.tasks and not config.evaluation.cloze:
            raise UserError(
                f"{directory} has no evaluation.tasks and no evaluation.cloze; give a configuration that "
                "has them with --tasks=CONFIG"
            )
        rows = rows_of(run, config)
        with _locked(directory):
            on_first_host(lambda: sweep(directory, "evaluation.json"))  # noqa: B023
            workspace = open_workspace(config, console)
            RunEvaluation(workspace, run, rows).measure_all()


def rows_of(run: RunDirectory, config: Config) -> dict[str, Path | None]:
    """The models to measure, and where they are: the base model, which is not in the run, and every
    finished stage.

    Raises:
      UserError: no stage is finished.
    """
    names = [config.general.name] if config.general is not None else []
    stages = [(0, name) for name in names] + [
        (number, domain.name) for number, domain in enumerate(config.domains, 1)
    ]
    found = {name: run.stage(number, name) / "huggingface" for number, name in stages}
    finished = {name: path for name, path in found.items() if path.is_dir()}
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
class Column:
    """One column of a matrix.

    Attributes:
      kind: `tasks` or `cloze`.
      name: of the task or of the set of facts.
      about: what is written beside the scores; its `key` is a hash of all that they depend on but the model.
      measure: the scores of a model.
    """

    kind: str
    name: str
    about: dict[str, Any]
    measure: Callable[[Checkpoint], dict[str, Any]]


def columns_of(workspace: Workspace, known: dict[str, dict[str, Any]]) -> list[Column]:
    """The end tasks and the sets of facts of a configuration, read and checked.

    Args:
      workspace: of the configuration.
      known: what `Evaluation.read` gives; baselines of a task that is as it was are taken from there.
    """
    settings = workspace.config.evaluation
    tasks = [
        _task_column(
            workspace,
            checked_task(workspace, each),
            settings.finetune_seeds,
            known["tasks"].get(each.name, {}),
        )
        for each in settings.tasks
    ]
    return tasks + [_cloze_column(workspace, each) for each in settings.cloze]


def checked_task(workspace: Workspace, settings: TaskSettings) -> Task:
    """Reads a task that this model and these devices can be trained on."""
    longest = workspace.checkpoint.architecture.max_length
    if settings.length > longest:
        raise UserError(
            f"task {settings.name}: length is {settings.length}, but {workspace.config.model.path} has "
            f"{longest} positions; use at most {longest}"
        )
    check_divisible(settings.batch_size, workspace.sharding, f"task {settings.name}: batch_size")
    task = load_task(settings, workspace.tokenizer, workspace.cache_dir)
    for note in task.notes:
        workspace.console.log(f"warning: {note}")
    architecture = workspace.checkpoint.architecture
    if settings.pair is not None and leaves_out_types(workspace.tokenizer, architecture):
        workspace.console.log(
            f"warning: end task {settings.name}: the two texts of a pair have one token type, as "
            "model_input_names of tokenizer_config.json lists no token_type_ids; add them if the model was "
            "trained with two"
        )
    return task


def check_inputs(workspace: Workspace) -> None:
    """Reads all end tasks and facts of a configuration, so that a mistake in them shows before training.

    Raises:
      UserError: one cannot be evaluated.
    """
    settings = workspace.config.evaluation
    for task in settings.tasks:
        checked_task(workspace, task)
    for facts in settings.cloze:
        checked_facts(workspace, facts)


def _task_column(workspace: Workspace, task: Task, seeds: int, known: dict[str, Any]) -> Column:
    def measure(checkpoint: Checkpoint) -> dict[str, Any]:
        result = finetune_checkpoint(workspace, checkpoint, task, seeds)
        names = result.scores[0]
        scores = {name: [seed[name] for seed in result.scores] for name in names}
        return {"seeds": list(range(seeds)), "scores": scores}

    key = sha256(f"{task.key} {seeds}".encode()).hexdigest()
    about = {
        "key": key,
        "domain": task.settings.domain,
        "metric": task.settings.metric,
        "classes": list(task.classes),
        "baselines": known["baselines"] if known.get("key") == key else baselines(task),
    }
    return Column("tasks", task.settings.name, about, measure)


def finetune_checkpoint(
    workspace: Workspace, checkpoint: Checkpoint, task: Task, seeds: int
) -> Finetuned:
    """Trains and tests the classifiers of one task on one model, and shows how far they are."""
    # Many short texts at a time: the kernel for long ones has nothing to win.
    model = dataclasses.replace(workspace.model, attention="dense")
    classifier = Classifier(model, len(task.classes))
    title = f"fine-tuning on {task.settings.name}"
    with workspace.console.progress(title, task.settings.epochs, transient=True) as line:
        return finetune(
            classifier,
            checkpoint.params,
            task,
            range(seeds),
            workspace.sharding,
            lambda epoch, loss: line.update(epoch, f"loss {loss:.3f}"),
        )


def finetune_one(
    config: Config, console: Console, name: str, path: str | None, output: Path | None
) -> tuple[Task, Finetuned]:
    """Fine-tunes a model on one of a configuration's end tasks.

    Args:
      config: the configuration.
      console: shows progress.
      name: of the task.
      path: a stage of a run, a HuggingFace directory or a hub name; None for the configuration's model.
      output: where a classifier is written for HuggingFace, if anywhere: that of the seed that was best on
        the validation set, of the first seed without one. It must not exist.

    Raises:
      UserError: there is no such task or model, the output exists, or anything else needs mending.
    """
    named = {task.name: task for task in config.evaluation.tasks}
    if name not in named:
        raise UserError(
            f"there is no task {name!r} in evaluation.tasks; it has {', '.join(named) or 'none'}"
        )
    if output is not None:
        on_first_host(lambda: check_free(output))
    if path is not None:
        stage = Path(path) / "huggingface"
        model = dataclasses.replace(config.model, path=str(stage) if stage.is_dir() else path)
        config = dataclasses.replace(config, model=model)
    workspace = open_workspace(config, console)
    task, checkpoint = checked_task(workspace, named[name]), workspace.checkpoint
    finetuned = finetune_checkpoint(workspace, checkpoint, task, config.evaluation.finetune_seeds)
    if output is not None:
        best = 0 if finetuned.validation is None else int(np.argmax(finetuned.validation))
        own = jax.tree.map(lambda x: x[best], workspace.sharding.fetch(finetuned.params_S))
        params = finetuned.words.widened(own, checkpoint.params)

        def export() -> None:
            with creating(output) as temporary:
                huggingface.export_classifier(
                    temporary,
                    params,
                    checkpoint.config,
                    checkpoint.architecture,
                    task.classes,
                    workspace.tokenizer,
                )

        on_first_host(export)
    return task, finetuned


def checked_facts(workspace: Workspace, settings: ClozeSettings) -> Facts:
    """Reads a set of facts that this model can be asked for."""
    facts = load_facts(settings, workspace.tokenizer)
    longest = workspace.checkpoint.architecture.max_length
    if facts.tokens_NxT.shape[1] > longest:
        raise UserError(
            f"facts {settings.name}: a sentence has {facts.tokens_NxT.shape[1]} tokens, but "
            f"{workspace.config.model.path} has {longest} positions; shorten it"
        )
    if facts.left_out:
        workspace.console.log(
            f"{settings.name}: {facts.left_out} facts left out, whose answer is not one token "
            "in its sentence"
        )
    if facts.unknown > USUAL_UNKNOWN:
        workspace.console.log(
            f"{settings.name}: {facts.unknown:.1%} of the tokens of the sentences are words that the "
            "tokenizer does not know"
        )
    return facts


def _cloze_column(workspace: Workspace, settings: ClozeSettings) -> Column:
    facts = checked_facts(workspace, settings)

    def measure(checkpoint: Checkpoint) -> dict[str, Any]:
        model, sharding = workspace.model, workspace.sharding
        return {"precision": precision(model, checkpoint.params, facts, sharding)}

    count = len(facts.answer_N)
    about = {"key": facts.key, "knowledge": settings.knowledge, "facts": count}
    return Column("cloze", settings.name, about, measure)


@dataclass(frozen=True)
class RunEvaluation:
    """One run's matrices, cell by cell; every cell is on disk as soon as it is known."""

    workspace: Workspace
    run: RunDirectory
    rows: dict[str, Path | None]

    def measure_all(self) -> None:
        scores, console = Evaluation(self.run.evaluation), self.workspace.console
        columns = columns_of(self.workspace, scores.read())
        on_first_host(lambda: scores.begin({(c.kind, c.name): c.about for c in columns}))
        with console.progress(f"evaluating {self.run.path}", len(columns) * len(self.rows)) as line:
            for row, path in self.rows.items():
                checkpoint = self._checkpoint(path)
                weights = checkpoint.weights_hash()
                for column in line.counting(columns):
                    self._measure(scores, column, row, checkpoint, weights)

    def _measure(
        self, scores: Evaluation, column: Column, row: str, checkpoint: Checkpoint, weights: str
    ) -> None:
        """One cell, unless it is known."""
        place = column.kind, column.name, row
        if on_first_host(lambda: scores.has(*place, weights)):
            return
        cell = {"weights": weights, **column.measure(checkpoint)}
        on_first_host(lambda: scores.write(*place, cell))
        self.workspace.console.log(f"after {row}, {column.name}: {_said(column, cell)}")

    def _checkpoint(self, path: Path | None) -> Checkpoint:
        if path is not None:
            try:
                return huggingface.load(path)
            except UserError as error:
                raise UserError(f"{str(error).partition(';')[0]}; {AGAIN}") from error
        model = self.workspace.config.model.path
        checkpoint = self.workspace.checkpoint
        if checkpoint.weights_hash() != self.run.inputs().get(f"the model {model}"):
            raise UserError(
                f"the model {model} changed after {self.run.path} was begun; put it back as it was"
            )
        return checkpoint


def _said(column: Column, cell: dict[str, Any]) -> str:
    if column.kind == "cloze":
        return f"precision {cell['precision']:.3f}"
    values = cell["scores"][column.about["metric"]]
    return f"{column.about['metric']} {sum(values) / len(values):.3f}"
