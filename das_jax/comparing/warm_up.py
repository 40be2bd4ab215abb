"""The warm-up on general text, which no method has a part in: learned once, and shared by links."""

import dataclasses
import functools
import hashlib
import itertools
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

from das_jax.config.schema import (
    OPTIMIZER_OPTIONS,
    SCHEDULE_OPTIONS,
    Config,
    EvaluationSettings,
    TrainingSettings,
)
from das_jax.config.show import to_yaml
from das_jax.files import replacing, sweep, write_json, write_text
from das_jax.methods.settings.policies import PoliciesSettings
from das_jax.methods.settings.whole_model import NaiveSettings
from das_jax.training.recipe import warm_up_training
from das_jax.training.run_directory import BASE, RunDirectory, Scores
from das_jax.training.stages import Stage, stages_of

LINKED = ("checkpoints", "huggingface")
"""Directories whose files are written once; links to them cost no room."""


def warm_up_of(config: Config) -> Stage | None:
    """The stage that warms a run up, if it has one."""
    return next((stage for stage in stages_of(config) if stage.warms_up), None)


def place_of(config: Config, directory: Path) -> Path:
    """Where in a directory the warm-up of a run is kept: equal warm-ups have one place.

    It depends on the model, the texts, the seed and the steps of general text alone; on how domains are
    learned, and in which order, it does not.
    """
    usual, training = TrainingSettings(), warm_up_training(config)
    read = {*SCHEDULE_OPTIONS[training.schedule], *OPTIMIZER_OPTIONS[training.optimizer]}
    options = itertools.chain(*SCHEDULE_OPTIONS.values(), *OPTIMIZER_OPTIONS.values())
    of_domains = {"steps", *options} - read
    general, evaluation = config.general, config.evaluation
    equal = dataclasses.replace(
        config,
        preset="das_jax",
        output_dir="unused",
        general=None if general is None else dataclasses.replace(general, may_rise=None),
        data=dataclasses.replace(config.data, cache_dir="unused", beam=None),
        domains=tuple(
            dataclasses.replace(domain, steps=None)
            for domain in sorted(config.domains, key=lambda domain: domain.name)
        ),
        training=dataclasses.replace(
            training, **{name: getattr(usual, name) for name in of_domains}
        ),
        method=NaiveSettings(),
        policies=PoliciesSettings(),
        evaluation=EvaluationSettings(
            examples=evaluation.examples, batch_size=evaluation.batch_size
        ),
    )
    key = hashlib.sha256(to_yaml(equal).encode()).hexdigest()[:12]
    return directory / f"seed-{config.seed}-{key}"


def keep_warm_up(config: Config, directory: Path) -> None:
    """Keeps the warm-up of a run that has finished it, for others.

    Args:
      config: of the run.
      directory: of warm-ups.
    """
    stage, run = warm_up_of(config), RunDirectory(Path(config.output_dir).expanduser())
    if stage is None:
        return
    place = place_of(config, directory)
    first = next(each for each in stages_of(config) if not each.warms_up)
    finished = (run.stage(first.number, first.name) / "checkpoints").is_dir()
    if not finished:
        return
    directory.mkdir(parents=True, exist_ok=True)
    with FileLock(directory / ".lock"):  # What another process is making is not swept away.
        sweep(directory)
        if not place.exists():
            with replacing(place) as temporary:
                _copy(run, RunDirectory(temporary), config, stage)


def begin_with_warm_up(config: Config, directory: Path) -> bool:
    """Begins a run as if it had learned the warm-up itself, if that is kept.

    Args:
      config: of the run.
      directory: of warm-ups.

    Returns:
      Whether it did; a run that is begun already is left alone.
    """
    stage, run = warm_up_of(config), RunDirectory(Path(config.output_dir).expanduser())
    kept = place_of(config, directory)
    if run.path.parent.is_dir():
        sweep(run.path.parent, run.path.name)
    if stage is None or run.begun or not kept.is_dir():
        return False
    with replacing(run.path) as temporary:
        _copy(RunDirectory(kept), RunDirectory(temporary), config, stage)
        write_text(temporary / "config.yaml", to_yaml(config))
    return True


def _copy(source: RunDirectory, target: RunDirectory, config: Config, stage: Stage) -> None:
    """The run up to the end of its warm-up; names in the order of the configuration, as a run has them."""
    assert config.general is not None
    texts = (config.general.name, *(domain.name for domain in config.domains))
    target.path.mkdir(parents=True)
    name = source.stage(stage.number, stage.name).name
    for each in ("base", name):
        place = source.path / each
        links = [place / linked for linked in LINKED]
        copy = functools.partial(_copy_file, links=links)
        shutil.copytree(place, target.path / each, copy_function=copy)
    if (source.path / "run.json").exists():
        shutil.copyfile(source.path / "run.json", target.path / "run.json")
    inputs = source.inputs()
    names = (*(f"the text of {text}" for text in texts), f"the model {config.model.path}")
    write_json(target.path / "inputs.json", {name: inputs[name] for name in names})
    heldout, validation = (
        _rows(source.scores(split), stage, texts) for split in ("heldout", "validation")
    )
    target.write_scores(heldout, validation, source.unit())


def _rows(scores: Scores, stage: Stage, texts: tuple[str, ...]) -> Scores:
    """Those until the end of the warm-up; none of text that is not measured."""
    rows = [row for row in (BASE, stage.name) if row in scores]
    return {row: {text: scores[row][text] for text in texts} for row in rows}


def _copy_file(source: str, target: str, links: Sequence[Path]) -> None:
    """A link where nothing will be written any more and the file system has some."""
    if any(Path(source).is_relative_to(each) for each in links):
        try:
            os.link(source, target)
        except OSError:
            pass
        else:
            return
    shutil.copyfile(source, target)
