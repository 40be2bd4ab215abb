"""`das-jax advise` on the tiny project."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from das_jax import cli
from das_jax.advising import advise, budget
from das_jax.advising.candidates import Candidates, beside, overlay, read_candidates
from das_jax.comparing.budget import plain
from das_jax.comparing.cells import Cell
from das_jax.config.load import load_config
from das_jax.config.parse import dump_yaml
from das_jax.config.schema import Config
from das_jax.config.show import to_yaml
from das_jax.errors import UserError
from das_jax.training.console import Console
from das_jax.training.interruption import Interruption
from tests.comparing.conftest import finish_by_hand
from tests.project import Project

Capture = pytest.CaptureFixture[str]


def test_the_candidates_that_ship_are_settings_of_any_run(project: Project) -> None:
    config = load_config(project.config).config
    candidates = read_candidates(None, config)
    assert list(candidates.systems) == ["configured", "plain", "merge", "replay"]
    rate = config.training.learning_rate
    assert candidates.rates == pytest.approx((0.3 * rate, rate, 3 * rate))


MERGING = (
    *("--preset=merge", "--method.name=naive", "--policies.averaging.c=1"),
    *("--policies.ema=null", "--policies.sharpness.rho=0.1", "--policies.general_share=0.5"),
)
WSD = ("--training.schedule=wsd", "--training.cooldown=0.3", "--training.trunk=false")


def laid_over(project: Project, overrides: tuple[str, ...], system: str, tmp_path: Path) -> Config:
    """The configuration with a system that ships, as `--with` would lay it over."""
    path, base = tmp_path / "base.yaml", load_config(project.config, overrides).config
    path.write_text(to_yaml(base))
    settings = dict(read_candidates(None, base).systems[system])
    del settings["vary"]
    over = tmp_path / "over.yaml"
    over.write_text(dump_yaml(overlay(settings)))
    return load_config(path, overlays=[over]).config


def test_plain_training_is_plain_whatever_the_configuration_is(
    project: Project, tmp_path: Path
) -> None:
    config = load_config(project.config, MERGING).config
    assert next(iter(read_candidates(None, config).systems)) == "configured"
    found = laid_over(project, MERGING, "plain", tmp_path)
    assert found == plain(found)
    assert (found.training.schedule, found.training.second_moment) == ("linear", "fresh")
    merged = laid_over(project, MERGING, "merge", tmp_path).policies
    assert merged.averaging is not None
    assert (merged.averaging.c, merged.sharpness, merged.general_share) == (2.0, None, 0.0)
    assert laid_over(project, WSD, "replay", tmp_path).training.cooldown == 0.3
    assert laid_over(project, WSD, "merge", tmp_path).training.schedule == "constant"


def test_what_a_configuration_cannot_do_is_not_tried(project: Project) -> None:
    config = load_config(project.config, ["--training.optimizer=lion"]).config
    candidates = read_candidates(None, config)
    assert "merge" not in candidates.systems
    # 5 % of 8 rows are none.
    assert candidates.systems["replay"]["vary"] == {"method.share": [0.2]}


def test_a_method_with_a_learning_rate_of_its_own_is_tried_with_others(
    project: Project, tmp_path: Path
) -> None:
    (tmp_path / "lora.yaml").write_text("method: {name: lora, r: 2, learning_rate: 3e-4}\n")
    path = tmp_path / "candidates.yaml"
    path.write_text(
        "rates: [0.5, 2]\nsystems: {lora: {with: lora.yaml}, plain: {method.name: naive}}"
    )
    override = ["--method.name=adapter", "--method.learning_rate=1e-3"]
    systems = read_candidates(path, load_config(project.config, override).config).systems
    assert systems["lora"]["vary"] == {"method.learning_rate": [1.5e-4, 6e-4]}
    assert systems["lora"]["training.learning_rate"] == 1e-2, "or it would be varied in vain"
    assert systems["configured"]["vary"] == {"method.learning_rate": [5e-4, 2e-3]}
    assert "vary" not in systems["plain"]


def test_arguments_that_would_lie_over_what_is_recommended_are_left_out() -> None:
    given = ["--method.share=0.5", "--policies.averaging.c=1", "--training.steps=4", "--seed=3"]
    settings = {
        "method": {"name": "naive"},
        "policies": {"averaging": None},
        "training": {"learning_rate": 1e-3},
    }
    assert beside(given, settings) == ["--training.steps=4", "--seed=3"]
    assert beside(given, {"training": {"steps": 3}}) == [*given[:2], given[3]]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("systems: {plain: {method.name: naive}}\n", "rates: field required"),
        ("rates: [0]\nsystems: {plain: {}}\n", "rates.0: input should be greater than 0"),
        ("rates: [1]\nsystems: {}\n", "systems: dictionary should have at least 1 item"),
    ],
)
def test_a_bad_file_of_candidates_is_one_sentence(
    project: Project, tmp_path: Path, text: str, said: str
) -> None:
    path = tmp_path / "candidates.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=rf"candidates\.yaml: {said}"):
        read_candidates(path, load_config(project.config).config)


def test_what_is_recommended_is_a_file_to_lay_over(tmp_path: Path) -> None:
    (tmp_path / "ewc.yaml").write_text("method: {name: ewc, strength: 5}\ntraining: {steps: 3}\n")
    found = overlay({"with": [str(tmp_path / "ewc.yaml")], "method.strength": 7.0})
    assert found == {"method": {"name": "ewc", "strength": 7.0}, "training": {"steps": 3}}
    (tmp_path / "dotted.yaml").write_text("method.name: naive\ntraining.b1: 0.5\n")
    found = overlay({"with": [str(tmp_path / name) for name in ("ewc.yaml", "dotted.yaml")]})
    assert found == {"method": {"name": "naive"}, "training": {"steps": 3, "b1": 0.5}}


@pytest.mark.slow
def test_the_pace_is_that_of_steps_and_of_the_warm_up(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs take 100 and 60 seconds, two of them for every step; the second does not warm up.

    What a process left that was killed tells nothing, and is learned again.
    """
    config = load_config(project.config).config
    clock = [0.0]
    monkeypatch.setattr(advise, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    def learn(self: Any, comparison: Any, cells: Sequence[Cell]) -> list[Any]:
        cell = cells[-1]
        finish_by_hand(cell, lambda cell: (0.1, 2.0, 2.0))
        for stage, steps in (("00-news", 4), ("01-papers", 5), ("02-reviews", 5)):
            (cell.run.path / stage).mkdir()
            line = f'{{"step": {steps}, "seconds_per_step": 2.0}}\n'
            (cell.run.path / stage / "metrics.jsonl").write_text(line)
        clock[0] += {1: 100.0, 2: 60.0}[len(cells)]
        return []

    monkeypatch.setattr(advise._Probes, "_learn", learn)
    candidates = Candidates({"configured": {}}, (config.training.learning_rate,))
    watched = Console(quiet=True), Interruption()
    probes = advise._Probes(config, candidates, budget.Budget(60.0), None, tmp_path, *watched)
    probes._begin()
    for _ in range(2):
        decided = probes._first()
        per_flop, overhead, warm_up, spent = decided["pace"]
        whole = budget.flops_of(config)
        assert per_flop * whole.steps == pytest.approx(2 * 5 * 2.0)
        assert overhead == pytest.approx(60.0 - 20.0 - per_flop * whole.measured)
        assert (warm_up, spent) == (8.0, 160.0)
        assert decided["steps"] == [5, 5]


@pytest.mark.slow
def test_probes_end_in_a_file_that_pretrain_takes(
    project: Project, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice: the second time nothing is learned again, and the same is said."""
    monkeypatch.setattr(advise, "SEEDS", (0, 1))
    monkeypatch.setattr(budget, "FEWEST", 1)
    candidates, out = tmp_path / "candidates.yaml", tmp_path / "out"
    candidates.write_text(
        "rates: [0.1, 10]\nsystems:\n  plain: {method.name: naive, vary: {policies.general_share: [0.25]}}\n"
    )
    command = [
        *("advise", str(project.config), "--method.name=naive", "--training.steps=4"),
        *(
            "--forget=0.5",
            "--flops=1e9",
            f"--candidates={candidates}",
            f"--output={out}",
            "--quiet",
        ),
    ]
    assert cli.main(command) == 0
    first = capsys.readouterr().out.splitlines()
    assert cli.main(command) == 0
    again = capsys.readouterr().out
    assert again.count("nothing is left to learn") == 2
    (use,) = (line for line in first if line.startswith("Use plain ("))
    assert use in again.splitlines()
    recommended = out / "recommended.yaml"
    found = load_config(project.config, overlays=[recommended]).config
    assert found.policies.general_share == 0.25
    assert found.general is not None
    assert found.general.may_rise == 0.5
    assert found.general.warmup_learning_rate == 1e-2, "the probes' own"
    assert f"learning_rate={found.training.learning_rate:g}" in use
    (written,) = (line for line in first if "recommended.yaml written" in line)
    assert written.endswith(f"{project.config} --with={recommended} --training.steps=4")
    tried = yaml.safe_load((out / "second.yaml").read_text())
    assert tried["seeds"] == [0, 1]
    assert len(tried["systems"]) == 2
    command[-2] = f"--output={tmp_path}"
    assert cli.main(command) == 2
    assert "holds other files" in capsys.readouterr().err
