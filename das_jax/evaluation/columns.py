"""The columns of a run's matrices: what each asks of whoever serves it, and what its scores depend on."""

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np

from das_jax.data.batches import ChunkRows, Chunks
from das_jax.data.questions import Questions
from das_jax.data.roles import ids
from das_jax.data.settings import (
    ChoicesSettings,
    ClozeSettings,
    HarnessSettings,
    MinimalPairsSettings,
)
from das_jax.data.tasks import Task
from das_jax.evaluation.baselines import baselines
from das_jax.evaluation.classifiers import finetune_checkpoint
from das_jax.evaluation.cloze_precision import precision
from das_jax.evaluation.harness import Harness
from das_jax.evaluation.inputs import (
    checked_choices,
    checked_completions,
    checked_facts,
    checked_pairs,
    checked_task,
)
from das_jax.evaluation.likelihood import completed, log_likelihoods
from das_jax.methods.net import Mixture
from das_jax.methods.settings.every_method import positions_before
from das_jax.training.workspace import Workspace


@dataclass(frozen=True)
class Column:
    """One column of a matrix.

    Attributes:
      kind: of `scores.KINDS`.
      name: of the task, or of the set of facts or of questions.
      about: what is written beside the scores; its `key` is a hash of all that they depend on but the model.
      measure: the scores of whoever serves it.
      domain: whose knowledge it asks for, if it is a domain's.
      text: its own text without its answers, to find out who serves it; None if that is what the last stage
        exported, whatever the text.
    """

    kind: str
    name: str
    about: dict[str, Any]
    measure: Callable[[Mixture], dict[str, Any]]
    domain: str | None
    text: Chunks | None


def columns_of(workspace: Workspace, known: dict[str, dict[str, Any]]) -> list[Column]:
    """The end tasks, facts and other probes of a configuration, read and checked.

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
    return [
        *tasks,
        *(_cloze_column(workspace, each) for each in settings.cloze),
        *(_choices_column(workspace, each) for each in settings.choices),
        *(_pairs_column(workspace, each) for each in settings.minimal_pairs),
        *_harness_columns(workspace, settings.harness),
    ]


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


def _cloze_column(workspace: Workspace, settings: ClozeSettings) -> Column:
    if workspace.checkpoint.architecture.causal:
        return _completions_column(workspace, settings)
    facts = checked_facts(workspace, settings)

    def measure(served: Mixture) -> dict[str, Any]:
        return {"precision": precision(served, facts, workspace.sharding)}

    count = len(facts.answer_N)
    about = {"key": facts.key, "knowledge": settings.knowledge, "facts": count}
    return Column("cloze", settings.name, about, measure, None, ChunkRows(facts.tokens_NxT))


def _completions_column(workspace: Workspace, settings: ClozeSettings) -> Column:
    questions, free, _ = checked_completions(workspace, settings)

    def measure(served: Mixture) -> dict[str, Any]:
        if free:
            found_R = completed(served, questions.tokens_RxT, workspace.sharding)
            return {"precision": float(np.mean(found_R))}
        return {"precision": questions.accuracy(_log_likelihoods(workspace, served, questions))}

    key = sha256(f"{questions.key} {free}".encode()).hexdigest()
    about = {"key": key, "knowledge": settings.knowledge, "facts": questions.total}
    return Column("cloze", settings.name, about, measure, None, _text(workspace, questions))


def _choices_column(workspace: Workspace, settings: ChoicesSettings) -> Column:
    questions = checked_choices(workspace, settings)

    def measure(served: Mixture) -> dict[str, Any]:
        score_R = _log_likelihoods(workspace, served, questions)
        by_byte_R = score_R / questions.bytes_R
        acc, acc_norm = questions.accuracy(score_R), questions.accuracy(by_byte_R)
        return {"scores": {"acc": acc, "acc_norm": acc_norm}}

    about = {
        "key": questions.key,
        "domain": settings.domain,
        "metric": settings.metric,
        "questions": questions.total,
    }
    text = _text(workspace, questions)
    return Column("choices", settings.name, about, measure, settings.domain, text)


def _pairs_column(workspace: Workspace, settings: MinimalPairsSettings) -> Column:
    pairs = checked_pairs(workspace, settings)

    def measure(served: Mixture) -> dict[str, Any]:
        return {"scores": {"accuracy": pairs.accuracy(_log_likelihoods(workspace, served, pairs))}}

    about = {"key": pairs.key, "domain": None, "metric": "accuracy", "questions": pairs.total}
    return Column("minimal_pairs", settings.name, about, measure, None, _text(workspace, pairs))


def _harness_columns(workspace: Workspace, settings: HarnessSettings | None) -> list[Column]:
    if settings is None:
        return []
    harness = Harness(workspace, settings)
    harness.check()

    def column(task: str) -> Column:
        about = {
            "key": harness.key(task),
            "domain": None,
            "metric": settings.metric,
            "questions": settings.limit,
        }

        def measure(served: Mixture) -> dict[str, Any]:
            return {"scores": harness.scores(task, served.best)}

        return Column("harness", task, about, measure, None, None)

    return [column(task) for task in settings.tasks]


def _log_likelihoods(workspace: Workspace, served: Mixture, questions: Questions) -> np.ndarray:
    causal = workspace.checkpoint.architecture.causal
    mask_token = None if causal else workspace.tokenizer.mask_token_id
    return log_likelihoods(served, questions.tokens_RxT, workspace.sharding, mask_token)


def _text(workspace: Workspace, questions: Questions) -> Chunks:
    """Right and wrong texts alike; chunks of a masked model have no roles."""
    rows_RxT = questions.tokens_RxT
    return ChunkRows(rows_RxT if workspace.checkpoint.architecture.causal else ids(rows_RxT))
