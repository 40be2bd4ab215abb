"""Any checkpoint of a run as a HuggingFace directory."""

from pathlib import Path
from typing import Any

import jax

from das_jax.errors import UserError
from das_jax.model import huggingface, huggingface_config
from das_jax.model.architecture import Architecture
from das_jax.model.masked_lm import MaskedLM
from das_jax.outputs import check_free, creating
from das_jax.training.checkpoint import Checkpoints, DamagedError, Restored
from das_jax.training.console import Console
from das_jax.training.run_directory import AGAIN, RunDirectory
from das_jax.training.sharding import make_sharding


def export(source: Path, target: Path) -> None:
    """Writes the parameters of a checkpoint where `AutoModelForMaskedLM` and `AutoTokenizer` find them.

    Args:
      source: a run, one of its stages, or one of a stage's checkpoints (`.../checkpoints/STEP`); the
        newest whole checkpoint in it is meant.
      target: the directory to write; it must not exist.

    Raises:
      UserError: there is no whole checkpoint, or the target exists.
    """
    check_free(target)
    # The accelerator may be busy with the very run that is exported.
    jax.config.update("jax_platforms", "cpu")
    console = Console(quiet=True)
    stages, step = find_stages(source)
    base = RunDirectory(stages[0].parent).base
    try:
        architecture = huggingface_config.architecture_of(base)
        tokenizer = huggingface.load_tokenizer(base)
    except UserError as error:
        raise UserError(f"{base} is lost or damaged; {AGAIN}") from error
    for stage in stages:
        restored = _restore(stage, step, architecture, console)
        if restored is not None:
            params = jax.device_get(restored.state["params"])
            config = huggingface_config.read_config(base)
            with creating(target) as temporary:
                huggingface.export(temporary, params, config, architecture, tokenizer)
            console.log(f"{target}: {stage.name}, checkpoint {restored.step}, for HuggingFace")
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


def _restore(
    stage: Path, step: int | None, architecture: Architecture, console: Console
) -> Restored | None:
    shapes = jax.eval_shape(MaskedLM(architecture).init, jax.random.key(0))

    def like(info: dict[str, Any]) -> dict[str, Any]:
        return {"params": shapes}

    directory, sharding = stage / "checkpoints", make_sharding(1)
    with Checkpoints(directory, sharding, console.log, read_only=True) as checkpoints:
        if step is None:
            return checkpoints.restore_latest(like)
        try:
            return checkpoints.restore(step, like)
        except DamagedError as error:
            raise UserError(f"{error}; give another") from error
