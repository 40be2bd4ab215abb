"""What a run does, without compiling any of it."""

from pathlib import Path
from typing import Any

import jax
import pytest
import yaml

from das_jax.config.load import load_config
from das_jax.model.language_model import LanguageModel
from das_jax.planning.architectures import KNOWN
from das_jax.planning.program import PlannedRun, Program
from das_jax.training.sharding import make_sharding
from das_jax.training.workspace import DEMO_MODEL

CONFIG: dict[str, Any] = {
    "output_dir": "unused",
    "model": {"path": DEMO_MODEL, "attention": "dense"},
    "general": {"source": {"kind": "demo", "name": "news"}, "steps": 7},
    "domains": [
        {"name": "a", "source": {"kind": "demo", "name": "acl"}, "steps": 3},
        {"name": "b", "source": {"kind": "demo", "name": "drugs"}},
    ],
    "training": {"steps": 10, "batch_size": 8},
    "method": {"name": "das", "importance": {"examples": 20, "batch_size": 8}},
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(CONFIG))
    return path


def programs(file: Path, *overrides: str, devices: int = 1) -> dict[str, Program]:
    config = load_config(file, overrides).config
    run = PlannedRun(config, KNOWN[DEMO_MODEL], make_sharding(devices, config.mesh.state))
    return {program.name: program for program in run.programs()}


def test_every_program_counts_for_every_seed(file: Path) -> None:
    def runs(*overrides: str) -> dict[str, int]:
        return {name: program.runs for name, program in programs(file, *overrides).items()}

    once = {"train step": 13, "domain importance": 6, "general importance": 3, "warm-up step": 7}
    assert runs() == once
    assert runs("--seeds=[4,5,6]") == {name: 3 * count for name, count in once.items()}


def params_bytes() -> int:
    shapes = jax.eval_shape(LanguageModel(KNOWN[DEMO_MODEL]).init, jax.random.key(0))
    return sum(4 * x.size for x in jax.tree.leaves(shapes))


def test_a_trunk_is_held_beside_the_programs_and_is_no_part_of_the_step(file: Path) -> None:
    schedule = "--training={{schedule: wsd, cooldown: 0.3, trunk: {}}}"
    kept, dropped = (
        programs(file, "--method={name: ewc}", schedule.format(trunk))
        for trunk in ("true", "false")
    )
    assert [*kept] == ["train step", "Fisher information", "warm-up step"]
    for name, program in kept.items():
        trunk = 0 if name == "warm-up step" else params_bytes()
        assert program.resident_bytes - dropped[name].resident_bytes == trunk, name
    step, without = (each["train step"].lower().as_text() for each in (kept, dropped))
    assert step == without


@pytest.mark.parametrize(
    ("method", "copies"), [("naive", 2), ("independent", 0), ("pool", 0)], ids=str
)
def test_a_trunk_is_kept_if_a_stage_goes_on_from_it(file: Path, method: str, copies: int) -> None:
    """In parts, with Adam's second moment if that goes on, too."""
    second_moment = "carried" if method == "naive" else "fresh"
    schedule = f"{{schedule: infinite, cooldown: 0.3, second_moment: {second_moment}}}"
    plain = (f"--method={{name: {method}}}", "--mesh.state=optimizer")
    found = programs(file, f"--training={schedule}", *plain, devices=8)["train step"]
    assert found.resident_bytes == pytest.approx(copies * params_bytes() / 8, rel=0.1)
