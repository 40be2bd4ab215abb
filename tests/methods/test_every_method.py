"""What every method must do: resume to the same bits, learn the same on any mesh, cost what it says."""

import dataclasses
import random
import shutil
import signal
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax
import pytest

from das_jax import stopping
from das_jax.config.load import load_config
from das_jax.config.schema import Config
from das_jax.methods.registry import METHODS
from das_jax.planning.architectures import KNOWN
from das_jax.planning.price import second_domain, usual_config
from das_jax.planning.program import PlannedRun
from das_jax.training import sharding as sharding_module
from das_jax.training.console import Console
from das_jax.training.flops import train_step_flops
from das_jax.training.interruption import Interrupted, Interruption
from das_jax.training.loop import Hooks
from das_jax.training.method_check import check_method
from das_jax.training.pretrain import pretrain
from das_jax.training.run_directory import RunDirectory
from das_jax.training.sharding import make_sharding
from das_jax.training.stages import stages_of
from das_jax.training.step import loss_and_gradients
from tests.project import Project

SMALL: dict[str, dict[str, Any]] = {
    "adapter": {"bottleneck": 4},
    "bcl": {"bottleneck": 4, "features": 3},
    "adapter_parallel": {"bottleneck": 4},
    "adapter_pfeiffer": {"bottleneck": 4},
    "block_expansion": {"every": 1},
    "classic": {"bottleneck": 4},
    "cpt": {"attention": 4, "feed_forward": 4},
    "das": {"importance": {"examples": 24, "batch_size": 8}},
    "derpp": {"buffer": 16},
    "dga": {"importance": {"examples": 24, "batch_size": 8}},
    "elle": {"share": 0.25, "buffer": 16},
    "ewc": {"examples": 16, "batch_size": 8},
    "hat_adapter": {"bottleneck": 4},
    "independent": {"merge": {"name": "ties"}},
    "lora": {"r": 2},
    "olora": {"r": 2},
    "prompt": {"length": 8},
    "replay": {"share": 0.25, "buffer": 16},
    "self_replay": {"buffer": 16, "rows": 1.0, "rounds": 2},
}
"""Settings of those whose defaults are for large texts and models."""

NAMES = [cls().name for cls in METHODS]

RESUMED_ELSEWHERE = {
    "das": "killed at many more moments in tests/training/test_resume.py",
    "dga": "as das, with the start of independent",
    "naive": "carries parameters and the optimizer's state alone, as a part of every other",
    "l2": "an anchor, which ewc carries beside F",
    "replay": "the buffer and the streams of elle, whose model grows besides",
    "self_replay": "the kept rows of derpp; that it lets go of them in the end is in test_rehearsal.py",
    "adapter_parallel": "as adapter, with another graft",
    "adapter_pfeiffer": "as adapter, with another graft",
    "prompt": "as adapter, which trains LayerNorms besides",
    "block_expansion": "its graft is trained on from domain to domain, as that of classic",
    "lora": "the additions of olora, which has those of earlier domains besides",
    "hat_adapter": "all that it carries classic does",
    "cpt": "all that it carries classic does",
    "bcl": "the memory of classic; its graft grows as that of olora does",
}
"""Whose state is a part of another's, of the same kind. What this gives up: that something in such a method's
own `begin` or `end` does not follow from the domain's key and what was saved would not show here.
"""

SAME_STEP = {
    "das": "tried in tests/training/test_method_check.py",
    "dga": "that of das",
    "naive": "a part of all others",
    "independent": "that of naive",
    "pool": "that of naive",
    "replay": "that of naive; the rows that it keeps are those of elle",
    "demix": "that of naive, with most parameters frozen, as in adapter",
    "derpp": "the loss of self_replay, which also makes its rows on the devices",
    "l2": "the pull of ewc with one weight for all, element by element",
    "adapter_parallel": "as adapter, with another graft",
    "adapter_pfeiffer": "as adapter, with another graft",
    "lora": "a part of that of olora",
    "hat_adapter": "that of classic in its first domain",
    "cpt": "the loss and the closing of bcl, with another graft",
}
"""Whose step is another's, or a part of it. What this gives up: where the grafts of cpt, lora and adapter's
other forms live on a mesh, which follows from shapes as for all others; and that the rows of derpp do not
depend on it.
"""

SAME_PROGRAMS = ("adapter_parallel", "adapter_pfeiffer", "hat_adapter")
"""Which ask for the programs of `adapter`, and of `classic` in its first domain. Their FLOPs are counted."""


def but(others: Collection[str]) -> list[str]:
    """The names of all methods but others."""
    assert {*others} <= {*NAMES}
    return [name for name in NAMES if name not in others]


def method_settings(name: str) -> Any:
    (cls,) = (cls for cls in METHODS if cls().name == name)
    return cls(**SMALL.get(name, {}))


def configured(project: Project, name: str, directory: Path) -> Config:
    overrides = [
        "--training.steps=3",
        "--training.checkpoint_every=9",
        f"--method={{name: {name}}}",
    ]
    config = load_config(project.config, [*overrides, f"--output_dir={directory}"]).config
    return dataclasses.replace(config, method=method_settings(name))


def run(config: Config) -> None:
    try:
        pretrain(config, Console(quiet=True), Interruption(), lambda path: None)
    finally:
        stopping.ask(False)


def stop_at(patch: pytest.MonkeyPatch, stage: str, step: int) -> None:
    """Somebody asks the run to stop while it takes this step."""
    after_step = Hooks.after_step

    def asked(hooks: Hooks, done: int, *others: Any) -> None:
        if (hooks.stage, done) == (stage, step):
            hooks.interruption.requested = signal.SIGTERM
        after_step(hooks, done, *others)

    patch.setattr(Hooks, "after_step", asked)


def left(directory: Path) -> dict[str, bytes]:
    """What people get, and the fingerprints of all that goes on to the next stage."""
    wanted = (
        directory / "scores.json",
        *directory.rglob("huggingface/*"),
        *directory.rglob("info/metadata"),
    )
    return {str(path.relative_to(directory)): path.read_bytes() for path in wanted}


@pytest.mark.slow
@pytest.mark.parametrize("name", but(RESUMED_ELSEWHERE))
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(
    project: Project, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ended between two domains, and stopped in the second, at a step drawn at random."""
    whole, parts = (
        dataclasses.replace(configured(project, name, tmp_path / each), general=None)
        for each in ("whole", "parts")
    )
    run(whole)
    last, directory = stages_of(whole)[-1], RunDirectory(tmp_path / "parts")
    shutil.copytree(tmp_path / "whole", directory.path)
    shutil.rmtree(directory.stage(last.number, last.name))
    scores = directory.scores()
    del scores[last.name]
    directory.write_scores(scores, None, "nats per masked token")
    with monkeypatch.context() as patch:
        stop_at(patch, last.name, random.Random(name).randint(1, last.steps))
        with pytest.raises(Interrupted, match=f"{last.name}: stopped at"):
            run(parts)
    run(parts)
    expected = left(tmp_path / "whole")
    assert any("checkpoints" in path for path in expected)
    assert left(directory.path) == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", but(SAME_STEP))
def test_it_learns_the_same_on_several_devices(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all that can be split in parts, however small."""
    monkeypatch.setattr(sharding_module, "SMALLEST_SPLIT", 2)
    method = METHODS[type(method_settings(name))]
    check_method(method, method_settings(name), devices=8, state="parameters")  # type: ignore[arg-type]


WIDE = dataclasses.replace(
    KNOWN["FacebookAI/roberta-base"],
    num_layers=1,
    vocab_size=2000,
    hidden_dropout=0.0,
    attention_dropout=0.0,
)
"""So wide that products outweigh all else; of one layer, as XLA counts the body of a loop once."""


def counted_and_said(settings: Any) -> tuple[float, int]:
    """FLOPs of loss and gradients in the second domain: what XLA counts, and what a method says."""
    config = usual_config()
    config = dataclasses.replace(
        config,
        method=settings,
        data=dataclasses.replace(config.data, length=64),
        training=dataclasses.replace(config.training, batch_size=2),
    )
    learning = second_domain(config, WIDE)
    planned = PlannedRun(config, WIDE, make_sharding(1))
    alone = dataclasses.replace(learning.recipe.method, axis_name=None)
    recipe = dataclasses.replace(learning.recipe, method=alone)
    batch = planned.stage_batch(learning)
    gradients = jax.jit(lambda state, batch: loss_and_gradients(recipe, state, batch))
    counted = gradients.lower(planned.state(learning), batch).cost_analysis()["flops"]
    return counted, train_step_flops(recipe, 2, 64)


@pytest.mark.parametrize("name", NAMES)
def test_its_flops_are_those_that_xla_counts(name: str) -> None:
    counted, said = counted_and_said(method_settings(name))
    assert counted == pytest.approx(said, rel=0.05)


@pytest.mark.parametrize("name", but(SAME_PROGRAMS))
def test_all_its_programs_can_be_planned(project: Project, name: str, tmp_path: Path) -> None:
    """On eight devices with everything split; what it measures between domains included."""
    config = configured(project, name, tmp_path)
    planned = PlannedRun(config, KNOWN["demo:bert-tiny"], make_sharding(8, "parameters"))
    names = []
    programs = [*planned.programs()]
    assert programs[0].flops == planned.step_flops
    for program in programs:
        assert program.flops > 0
        assert program.runs > 0
        program.lower()
        names.append(program.name)
    assert names[0] == "train step"
    assert names[-1] == "warm-up step"
