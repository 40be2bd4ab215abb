"""What a run should hold and does not: damaged, deleted, or never written."""

from collections.abc import Sequence
from pathlib import Path

from das_jax.config.schema import Config
from das_jax.errors import UserError
from das_jax.methods.registry import method_class
from das_jax.training.metrics import read_rows
from das_jax.training.run_directory import AGAIN, RunDirectory
from das_jax.training.stages import Stage, stages_of


def lost(run: RunDirectory, config: Config, stages: Sequence[Stage] | None = None) -> list[str]:
    """A sentence for everything that the finished stages of a run should have and have not.

    Args:
      run: the run.
      config: its configuration.
      stages: the finished ones, if that is known. Else what a stage left says whether it is: checkpoints are
        not looked at, as older ones may be removed.
    """
    try:
        rows = set(run.scores())
    except UserError as error:
        return [str(error)]
    found = []
    for stage in stages_of(config) if stages is None else stages:
        name, directory = stage.name, run.stage(stage.number, stage.name)
        exported = (directory / "huggingface").is_dir()
        if stages is None and not exported and name not in rows:
            continue  # Not finished.
        if not exported:
            found.append(f"{directory / 'huggingface'} is lost; {AGAIN}")
        if name not in rows:
            found.append(f"the held-out losses of {name} are lost; {AGAIN}")
        found += lost_lines(directory / "metrics.jsonl", config, stage.steps)
        if stage.domain_index is not None:
            method = method_class(stage.method_settings)
            found += method.lost(*(stage.method_settings, directory, stage.domain_index, run.base))
    return found


def lost_lines(path: Path, config: Config, steps: int) -> list[str]:
    """A sentence if a finished stage's metrics lack the lines of some steps."""
    training = config.training
    wanted = {
        step
        for every in (training.log_every, training.checkpoint_every)
        for step in range(every, steps + 1, every)
    }
    try:
        lines = read_rows(path).lines
    except OSError as error:
        return [f"{path} cannot be read ({error.strerror}); the curves go without it"]
    # A line begins with its step.
    missing = {*wanted, steps} - {int(line.split(",")[0].split(":")[1]) for line in lines}
    if not missing:
        return []
    return [
        f"{path} lacks the lines of {len(missing)} of {len({*wanted, steps})} steps, which nothing else has; "
        "curves and costs go without them"
    ]
