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
from das_jax.data.batches import ChunkRows, Chunks
from das_jax.data.cloze import Facts, load_facts
from das_jax.data.settings import ClozeSettings, TaskSettings
from das_jax.data.tasks import Task, load_task
from das_jax.data.tokenization import USUAL_UNKNOWN
from das_jax.errors import UserError
from das_jax.evaluation.baselines import baselines
from das_jax.evaluation.cloze_precision import precision
from das_jax.evaluation.finetune import Finetuned, finetune
from das_jax.evaluation.scores import Evaluation, runs_of
from das_jax.files import sweep
from das_jax.methods.net import Mixture, Net, mixed
from das_jax.methods.settings.every_method import positions_before
from das_jax.model import huggingface
from das_jax.model.classifier import Classifier
from das_jax.model.grafts.files import Base
from das_jax.model.huggingface_grafts import is_graft
from das_jax.model.plain import plain_params
from das_jax.model.tokenizer_fit import leaves_out_types
from das_jax.outputs import check_free, creating
from das_jax.training.console import Console
from das_jax.training.distributed import on_first_host
from das_jax.training.run_directory import BASE, RunDirectory
from das_jax.training.serving import RunHistory, grafted, view
from das_jax.training.sharding import check_divisible
from das_jax.training.stages import Stage, stages_of
from das_jax.training.workspace import Workspace, check_fits, open_workspace


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
class Column:
    """One column of a matrix.

    Attributes:
      kind: `tasks` or `cloze`.
      name: of the task or of the set of facts.
      about: what is written beside the scores; its `key` is a hash of all that they depend on but the model.
      measure: the scores of whoever serves it.
      domain: whose knowledge it asks for, if it is a domain's.
      text: its own text without its answers, to find out who serves it.
    """

    kind: str
    name: str
    about: dict[str, Any]
    measure: Callable[[Mixture], dict[str, Any]]
    domain: str | None
    text: Chunks


def columns_of(workspace: Workspace, known: dict[str, dict[str, Any]]) -> list[Column]:
    """The end tasks and the sets of facts of a configuration, read and checked.

    Args:
      workspace: of the configuration.
      known: what `Evaluation.read` gives; baselines of a task that is as it was are taken from there.
    """
    settings, before = workspace.config.evaluation, positions_before(workspace.config.method)
    tasks = [
        _task_column(
            workspace,
            checked_task(workspace, each, before),
            settings.finetune_seeds,
            known["tasks"].get(each.name, {}),
        )
        for each in settings.tasks
    ]
    return tasks + [_cloze_column(workspace, each) for each in settings.cloze]


def checked_task(workspace: Workspace, settings: TaskSettings, before: int) -> Task:
    """Reads a task that these devices can train this model on, with so many vectors before a text."""
    architecture = workspace.checkpoint.architecture
    what, path = f"task {settings.name}: length", workspace.config.model.path
    check_fits(what, settings.length, path, architecture, before)
    check_divisible(settings.batch_size, workspace.sharding, f"task {settings.name}: batch_size")
    task = load_task(settings, workspace.tokenizer, workspace.cache_dir)
    for note in task.notes:
        workspace.console.log(f"warning: {note}")
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
        checked_task(workspace, task, positions_before(workspace.config.method))
    for facts in settings.cloze:
        checked_facts(workspace, facts)


def _task_column(workspace: Workspace, task: Task, seeds: int, known: dict[str, Any]) -> Column:
    def measure(served: Mixture) -> dict[str, Any]:
        result = finetune_checkpoint(workspace, served.best, task, seeds)
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
    text = ChunkRows(task.train.tokens_NxT)
    return Column("tasks", task.settings.name, about, measure, task.settings.domain, text)


def finetune_checkpoint(workspace: Workspace, net: Net, task: Task, seeds: int) -> Finetuned:
    """Trains and tests the classifiers of one task on one model, and shows how far they are."""
    # Many short texts at a time: the kernel for long ones has nothing to win.
    model = dataclasses.replace(net.model, attention="dense")
    classifier = Classifier(model, len(task.classes))
    title = f"fine-tuning on {task.settings.name}"
    with workspace.console.progress(title, task.settings.epochs, transient=True) as line:
        return finetune(
            classifier,
            classifier.pretrained(net.params, net.gates),
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
    found = None
    if path is not None:
        stage = Path(path) / "huggingface"
        found = stage if stage.is_dir() else Path(path)
        if not is_graft(found):
            model = dataclasses.replace(config.model, path=str(stage) if stage.is_dir() else path)
            config = dataclasses.replace(config, model=model)
    workspace = open_workspace(config, console)
    checkpoint = workspace.checkpoint
    net = Net(workspace.model, checkpoint.params)
    if found is not None and is_graft(found):
        net = grafted(net, found, Base(config.model.path, checkpoint.weights_hash()))
        if output is not None and plain_params(net.model, net.params, net.gates) is None:
            raise UserError(
                f"--output: no HuggingFace classifier has the function of a model with {found}; leave it out"
            )
    task = checked_task(workspace, named[name], net.model.prefix)
    finetuned = finetune_checkpoint(workspace, net, task, config.evaluation.finetune_seeds)
    if output is not None:
        best = 0 if finetuned.validation is None else int(np.argmax(finetuned.validation))
        own = jax.tree.map(lambda x: x[best], workspace.sharding.fetch(finetuned.params_S))
        whole = finetuned.words.widened(own, net.params)
        plain = plain_params(net.model, whole)
        assert plain is not None
        params = plain

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
    before = positions_before(workspace.config.method)
    longest = workspace.checkpoint.architecture.max_length - before
    if facts.tokens_NxT.shape[1] > longest:
        raise UserError(
            f"facts {settings.name}: a sentence has {facts.tokens_NxT.shape[1]} tokens, but "
            f"{workspace.config.model.path} has {longest} positions for it; shorten it"
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

    def measure(served: Mixture) -> dict[str, Any]:
        return {"precision": precision(served, facts, workspace.sharding)}

    count = len(facts.answer_N)
    about = {"key": facts.key, "knowledge": settings.knowledge, "facts": count}
    return Column("cloze", settings.name, about, measure, None, ChunkRows(facts.tokens_NxT))


@dataclass(frozen=True)
class RunEvaluation:
    """One run's matrices, cell by cell; every cell is on disk as soon as it is known."""

    workspace: Workspace
    run: RunDirectory
    rows: dict[str, Stage | None]

    def measure_all(self) -> None:
        scores, console = Evaluation(self.run.evaluation), self.workspace.console
        columns = columns_of(self.workspace, scores.read())
        on_first_host(lambda: scores.begin({(c.kind, c.name): c.about for c in columns}))
        config, checkpoint = self.workspace.config, self.workspace.checkpoint
        self.run.check_model(config, checkpoint.weights_hash())
        with console.progress(f"evaluating {self.run.path}", len(columns) * len(self.rows)) as line:
            for row, stage in self.rows.items():
                history, known = self._history(stage), Hashes()
                for column in line.counting(columns):
                    served, by = self._served(history, stage, column)
                    self._measure(scores, column, row, served, by, known)

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
        if stage is None or stage.warms_up:
            return mixed(history.base()), ""
        method = self.workspace.method(stage.method_settings)
        found, compared = view(method, history, column.domain, column.text)
        served = mixed(found)
        if column.kind == "tasks":  # A classifier is made of one model.
            served = mixed(served.best)
        by = served if len(served.nets) > 1 else served.best
        return served, history.name_of(by) if compared else ""

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
    values = cell["scores"][column.about["metric"]]
    return f"{column.about['metric']} {sum(values) / len(values):.3f}"
