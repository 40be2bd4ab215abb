"""What a run should hold and does not: damaged, deleted, or never written."""

from pathlib import Path

from das_jax.config.schema import Config
from das_jax.errors import UserError
from das_jax.methods.das import importance_map
from das_jax.methods.das.das import DASSettings
from das_jax.methods.das.importance_map import ImportanceMap
from das_jax.model.huggingface_config import architecture_of
from das_jax.training.metrics import read_rows
from das_jax.training.run_directory import AGAIN, RunDirectory


def lost(run: RunDirectory, config: Config) -> list[str]:
    """A sentence for everything that the finished stages of a run should have and have not.

    Checkpoints are not looked at: older ones may be removed.
    """
    try:
        rows = set(run.scores())
    except UserError as error:
        return [str(error)]
    found = []
    for number, name, steps in _stages(config):
        stage = run.stage(number, name)
        exported = (stage / "huggingface").is_dir()
        if not exported and name not in rows:
            continue  # Not finished.
        if not exported:
            found.append(f"{stage / 'huggingface'} is lost; {AGAIN}")
        if name not in rows:
            found.append(f"the held-out losses of {name} are lost; {AGAIN}")
        found += lost_lines(stage / "metrics.jsonl", config, steps)
        if number > 0 and isinstance(config.method, DASSettings):
            measured = number == 1 and config.method.importance.initial is None
            names = ["importance-general"] * measured + ["importance"]
            found += [
                sentence
                for name in names
                if (sentence := _lost_map(run, stage / f"{name}.safetensors"))
            ]
    return found


def _stages(config: Config) -> list[tuple[int, str, int]]:
    """Number, name and steps of every stage."""
    stages = [
        (number, domain.name, domain.steps or config.training.steps)
        for number, domain in enumerate(config.domains, 1)
    ]
    general = config.general
    if general is not None and general.steps:
        stages.insert(0, (0, general.name, general.steps))
    return stages


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


def load_map(run: RunDirectory, path: Path) -> ImportanceMap:
    """An importance map that a stage of a run has measured.

    Raises:
      UserError: it is lost, damaged, or another's.
    """
    found = importance_map.load(path, architecture_of(run.base))
    if found.halves is None:
        raise UserError(
            f"{path} was converted with --published, so it is not the map of this stage; put that back"
        )
    return found


def _lost_map(run: RunDirectory, path: Path) -> str | None:
    try:
        load_map(run, path)
    except UserError as error:
        reason = str(error).partition(";")[0]
        return f"{reason}; the report goes without it, what it protects is in the checkpoints"
    return None
