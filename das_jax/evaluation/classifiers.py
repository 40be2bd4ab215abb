"""The classifiers of one end task on one model, and how they are written for HuggingFace."""

import dataclasses
from pathlib import Path

import jax
import numpy as np

from das_jax.config.schema import Config
from das_jax.data.tasks import Task
from das_jax.errors import UserError
from das_jax.evaluation.finetune import Finetuned, finetune, finetuning_work
from das_jax.evaluation.inputs import checked_task
from das_jax.methods.net import Net
from das_jax.model import huggingface
from das_jax.model.classifier import Classifier
from das_jax.model.grafts.files import Base
from das_jax.model.huggingface_grafts import is_graft
from das_jax.model.plain import plain_params
from das_jax.outputs import check_free, creating
from das_jax.training.console import Console
from das_jax.training.distributed import on_first_host
from das_jax.training.memory_advice import advising
from das_jax.training.out_of_memory import watching
from das_jax.training.serving import grafted
from das_jax.training.workspace import Workspace, open_workspace


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
    with advising(config, console.log, "command"):
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


def finetune_checkpoint(workspace: Workspace, net: Net, task: Task, seeds: int) -> Finetuned:
    """Trains and tests the classifiers of one task on one model, and shows how far they are."""
    # Many short texts at a time: the kernel for long ones has nothing to win.
    model = dataclasses.replace(net.model, attention="dense")
    classifier = Classifier(model, len(task.classes))
    title = f"fine-tuning on {task.settings.name}"
    names = [each.name for each in workspace.config.evaluation.tasks]
    size = f"evaluation.tasks.{names.index(task.settings.name)}.batch_size"
    pretrained = classifier.pretrained(net.params, net.gates)
    work = finetuning_work(title, size, classifier, pretrained, task, seeds, workspace.sharding)
    with (
        workspace.console.progress(title, task.settings.epochs, transient=True) as line,
        watching(work),
    ):
        return finetune(
            classifier,
            pretrained,
            task,
            range(seeds),
            workspace.sharding,
            lambda epoch, loss: line.update(epoch, f"loss {loss:.3f}"),
        )
