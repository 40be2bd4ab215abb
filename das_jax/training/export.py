"""Any checkpoint of a run as a HuggingFace directory."""

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from das_jax.config.schema import Config, MeshSettings
from das_jax.errors import UserError
from das_jax.methods.contract import Learned
from das_jax.methods.net import Net, mixed
from das_jax.model import huggingface, huggingface_config, huggingface_grafts
from das_jax.model.huggingface_config import ExportDtype
from das_jax.model.language_model import Params
from das_jax.outputs import check_free, creating
from das_jax.training.checkpoint import Checkpoints, DamagedError, Restored
from das_jax.training.console import Console
from das_jax.training.recipe import recipe_of
from das_jax.training.run_directory import AGAIN, RunDirectory
from das_jax.training.saved import learned_shapes, saved_learned
from das_jax.training.serving import COMPARED, ChunkTexts, RunHistory, as_exported
from das_jax.training.stages import Stage, stages_of
from das_jax.training.workspace import Workspace, model_directory

MANY = 2**31 - 1
"""Chunks of a text whose number is not looked up: the model of a plan does not depend on it."""


def export(
    source: Path,
    target: Path,
    domain: str | None = None,
    *,
    graft: bool = False,
    dtype: ExportDtype | None = None,
) -> None:
    """Writes the model of a checkpoint where transformers' `AutoModelFor...` and `AutoTokenizer` find it.

    Args:
      source: a run, one of its stages, or one of a stage's checkpoints (`.../checkpoints/STEP`); the
        newest whole checkpoint in it is meant.
      target: the directory to write; it must not exist.
      domain: whose model it is, as the method serves it after that checkpoint; None for what the stage's
        own domain is served with.
      graft: writes what was put into the model, beside its base, even where it could be merged.
      dtype: of the weights of a plain model; None for `export.dtype` of the run.

    Raises:
      UserError: there is no whole checkpoint, the target exists, the domain is not learned, or there is no
        graft.
    """
    check_free(target)
    if graft and domain is not None:
        raise UserError(
            "--graft and --domain cannot be given together; give the stage of the domain instead"
        )
    if graft and dtype is not None:
        raise UserError(
            "--graft and --dtype cannot be given together; a graft is written in float32"
        )
    # The accelerator may be busy with the very run that is exported.
    jax.config.update("jax_platforms", "cpu")
    console = Console(quiet=True)
    paths, step = find_stages(source)
    run = RunDirectory(paths[0].parent)
    config = run.config()
    if domain is not None and domain not in (names := [each.name for each in config.domains]):
        raise UserError(f"{run.path} has no domain {domain!r}; it has {', '.join(names)}")
    workspace = _workspace(run, config, console)
    for path in paths:
        stage = _stage(run, config, path)
        restored = _restore(workspace, stage, path, step)
        if restored is None:
            continue
        learned, what = saved_learned(restored.state), path.name
        net = _net(workspace, stage, learned, graft)
        history = _history(workspace, run, stage, (learned, net))
        if domain is not None:
            net = as_exported(_view(history, stage, domain))
            what = f"{domain} after {path.name}"
        if dtype is not None and net.model.graft is not None:
            raise UserError(f"{what} stands beside its base model, in float32; leave --dtype out")
        params, gates = jax.device_get((net.params, net.gates))
        with creating(target) as temporary:
            huggingface_grafts.export_net(
                *(temporary, net.model, params, gates),
                base=history.base_identity,
                config=workspace.checkpoint.config,
                tokenizer=workspace.tokenizer,
                merge=not graft,
                dtype=dtype or config.export.dtype,
            )
        console.log(f"{target}: {what}, checkpoint {restored.step}, for HuggingFace")
        return
    raise UserError(f"{source} has no whole checkpoint; give another stage or step")


def find_stages(source: Path) -> tuple[list[Path], int | None]:
    """The stage directories that `source` means, the newest first, and the step if it names one."""
    if source.parent.name == "checkpoints" and source.name.isdecimal() and source.is_dir():
        return [source.parent.parent], int(source.name)
    if (source / "checkpoints").is_dir():
        return [source], None
    stages = sorted(path.parent for path in source.glob("[0-9][0-9]-*/checkpoints"))
    if not stages:
        raise UserError(
            f"{source} is no run, stage or checkpoint of das-jax; give runs/NAME, runs/NAME/01-DOMAIN, or "
            "runs/NAME/01-DOMAIN/checkpoints/STEP"
        )
    return stages[::-1], None


def _workspace(run: RunDirectory, config: Config, console: Console) -> Workspace:
    """Of the run, on this machine and without the base model's weights, which few exports need."""
    try:
        architecture = huggingface_config.architecture_of(run.base)
        tokenizer = huggingface.load_tokenizer(run.base)
        written = huggingface_config.read_config(run.base)
    except UserError as error:
        raise UserError(f"{run.base} is lost or damaged; {AGAIN}") from error
    model = dataclasses.replace(config.model, attention="dense", dtype="float32")
    config = dataclasses.replace(config, model=model, mesh=MeshSettings(data=1))
    checkpoint = huggingface.Checkpoint(architecture, {}, written, [])
    return Workspace(config, console, checkpoint, tokenizer)


def _stage(run: RunDirectory, config: Config, path: Path) -> Stage:
    for stage in stages_of(config):
        if run.stage(stage.number, stage.name).name == path.resolve().name:
            return stage
    raise UserError(f"{path} is no stage of {run.path / 'config.yaml'}; give one of that run's own")


def _restore(workspace: Workspace, stage: Stage, path: Path, step: int | None) -> Restored | None:
    """What a checkpoint holds of the method, in the shapes that it says itself."""
    method, sharding = workspace.method(stage.method_settings), workspace.sharding
    like = functools.partial(learned_shapes, method, sharding)
    directory, log = path / "checkpoints", workspace.console.log
    with Checkpoints(directory, sharding, log, read_only=True) as checkpoints:
        if step is None:
            return checkpoints.restore_latest(like)
        try:
            return checkpoints.restore(step, like)
        except DamagedError as error:
            raise UserError(f"{error}; give another") from error


def _net(workspace: Workspace, stage: Stage, learned: Learned, graft: bool) -> Net:
    """What the stage's own domain is served with; with its graft, if that is wanted."""
    method = workspace.method(stage.method_settings)
    place = stage.place(dict.fromkeys(stage.domains, MANY))
    plan = recipe_of(workspace.config, method, stage, place).plan
    if not graft:
        return as_exported(method.net(learned, plan))
    if plan.model.graft is None:
        raise UserError(
            f"stage {stage.name} has no graft, it trained the model itself; leave --graft out"
        )
    return Net(plan.model, learned.params)


def _history(
    workspace: Workspace, run: RunDirectory, stage: Stage, last: tuple[Learned, Net]
) -> "_History":
    """The stages up to one, which left this and is served so."""
    stages = stages_of(workspace.config)
    warm_up = next((each for each in stages if each.warms_up), None)
    until = tuple(each for each in stages if not each.warms_up and each.number <= stage.number)
    return _History(workspace, run, warm_up, until, last)


def _view(history: RunHistory, stage: Stage, domain: str) -> Net:
    """Who serves a domain after a stage; of a mixture the largest part."""
    workspace = history.workspace
    learned = [name for names in history.domains for name in names]
    if domain not in learned:
        other = f", or one of {', '.join(learned)}" if learned else ""
        raise UserError(
            f"{domain} is not learned yet after {stage.name}; give a later stage{other}"
        )
    method = workspace.method(stage.method_settings)
    return mixed(method.view(history, domain, _DomainTexts(workspace, domain))).best


class _History(RunHistory):
    """A run's history whose base model is looked up only if it is asked for."""

    def base_params(self) -> Params:
        checkpoint = huggingface.load(model_directory(self.workspace.config))
        self.directory.check_model(self.workspace.config, checkpoint.weights_hash())
        return checkpoint.params


@dataclass
class _DomainTexts:
    """A domain's training text, prepared only if it is asked for."""

    workspace: Workspace
    domain: str

    def losses(self, nets: Sequence[Net]) -> list[float]:
        return self._texts.losses(nets)

    def log_likelihoods(self, nets: Sequence[Net], examples: int = COMPARED) -> np.ndarray:
        return self._texts.log_likelihoods(nets, examples)

    @functools.cached_property
    def _texts(self) -> ChunkTexts:
        domains: dict[str, Any] = {each.name: each for each in self.workspace.config.domains}
        return ChunkTexts(self.workspace, self.workspace.corpus(domains[self.domain]).train)
