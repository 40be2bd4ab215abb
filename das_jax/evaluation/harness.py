"""Tasks of EleutherAI's lm-evaluation-harness, by its Python API, on what a stage exports.

The harness computes with PyTorch, from a checkpoint on disk. It is imported only where it is asked for.
"""

import importlib
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from das_jax.data.settings import HarnessSettings
from das_jax.errors import UserError
from das_jax.methods.net import Net
from das_jax.model import huggingface
from das_jax.model.plain import plain_params
from das_jax.training.distributed import on_first_host
from das_jax.training.workspace import Workspace


@dataclass
class Harness:
    """The harness, and the model that it was given last.

    Attributes:
      workspace: of the run.
      settings: what is asked.
    """

    workspace: Workspace
    settings: HarnessSettings
    _held: tuple[Net, Any] | None = field(default=None, repr=False)

    def check(self) -> None:
        """Raises UserError if it is not installed, or knows a task not, or the model is no decoder."""
        if not self.workspace.checkpoint.architecture.causal:
            raise UserError(
                f"evaluation.harness is for decoders, but {self.workspace.config.model.path} is a masked "
                "language model; leave it out"
            )
        known = set(self._tasks.all_tasks)
        for task in self.settings.tasks:
            if task not in known:
                raise UserError(
                    f"evaluation.harness.tasks has {task}, which lm_eval {version('lm_eval')} does not know; "
                    "correct it, or set evaluation.harness.include_path to the directory of its file"
                )

    def key(self, task: str) -> str:
        """A hash of all that the scores of a task depend on but the model."""
        settings = self.settings
        parts = [version("lm_eval"), task, settings.few_shot, settings.limit]
        if settings.include_path is not None:
            files = sorted(Path(settings.include_path).expanduser().rglob("*"))
            parts += [sha256(file.read_bytes()).hexdigest() for file in files if file.is_file()]
        return sha256(repr(parts).encode()).hexdigest()

    def scores(self, task: str, net: Net) -> dict[str, float]:
        """Every score of a task.

        Raises:
          UserError: no plain checkpoint has the function of the net, the harness fails, or the task has not
            the metric that tables show.
        """
        return on_first_host(lambda: self._scores(task, net))

    def _scores(self, task: str, net: Net) -> dict[str, float]:
        settings = self.settings
        try:
            found = _imported("lm_eval").simple_evaluate(
                model=self._model(net),
                tasks=[task],
                num_fewshot=settings.few_shot,
                limit=settings.limit,
                task_manager=self._tasks,
                bootstrap_iters=0,
                log_samples=False,
            )
        except UserError:
            raise
        except Exception as error:  # A task is another's code, and its data may not be there.
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(
                f"lm_eval could not measure {task} ({reason}); mend the task, or leave it out of "
                "evaluation.harness.tasks"
            ) from error
        scores = {
            name.removesuffix(",none"): float(score)
            for name, score in found["results"][task].items()
            if "," in name and "_stderr," not in name and isinstance(score, int | float)
        }
        if settings.metric not in scores:
            raise UserError(
                f"evaluation.harness.metric is {settings.metric}, but {task} has "
                f"{', '.join(scores) or 'no scores'}; set it to one of all tasks"
            )
        return scores

    def _model(self, net: Net) -> Any:
        """The harness's model of a net, made once for all tasks."""
        if self._held is None or not _same(self._held[0], net):
            self._held = None  # Before there is another.
            self._held = net, self._loaded(net)
        return self._held[1]

    def _loaded(self, net: Net) -> Any:
        params = plain_params(net.model, net.params, net.gates)
        if params is None:
            raise UserError(
                "evaluation.harness reads plain checkpoints, and none has the function of what serves here; "
                "leave it out, or let the method merge what it adds"
            )
        checkpoint, settings = self.workspace.checkpoint, self.settings
        with TemporaryDirectory() as temporary:
            directory = Path(temporary) / "model"
            huggingface.export(
                directory,
                params,
                checkpoint.config,
                net.model.architecture,
                self.workspace.tokenizer,
            )
            return _imported("lm_eval.models.huggingface").HFLM(
                pretrained=str(directory),
                dtype="float32",
                device=settings.device,
                batch_size=settings.batch_size,
            )

    @cached_property
    def _tasks(self) -> Any:
        include = self.settings.include_path
        if include is not None:
            include = str(Path(include).expanduser())
            if not Path(include).is_dir():
                raise UserError(
                    f"evaluation.harness.include_path is {include}, which is no directory; correct it"
                )
        return _imported("lm_eval.tasks").TaskManager(include_path=include)


def _same(one: Net, other: Net) -> bool:
    return one.params is other.params and one.gates is other.gates


def _imported(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            "evaluation.harness needs the lm-evaluation-harness: pip install 'das-jax[harness]', or leave it "
            "out"
        ) from error
