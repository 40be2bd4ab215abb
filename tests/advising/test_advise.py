"""`das-jax advise` on the tiny project."""

from pathlib import Path

import pytest
import yaml

from das_jax import cli
from das_jax.advising import advise, budget
from das_jax.advising.candidates import overlay, read_candidates
from das_jax.config.load import load_config
from das_jax.errors import UserError
from tests.project import Project

Capture = pytest.CaptureFixture[str]


def test_the_candidates_that_ship_are_settings_of_any_run(project: Project) -> None:
    config = load_config(project.config).config
    candidates = read_candidates(None, config)
    assert list(candidates.systems) == ["configured", "plain", "merge", "replay"]
    rate = config.training.learning_rate
    assert candidates.rates == pytest.approx((0.3 * rate, rate, 3 * rate))


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
    assert f"learning_rate={found.training.learning_rate:g}" in use.replace("0.0", "0.0")
    tried = yaml.safe_load((out / "second.yaml").read_text())
    assert tried["seeds"] == [0, 1]
    assert len(tried["systems"]) == 2
    command[-2] = f"--output={tmp_path}"
    assert cli.main(command) == 2
    assert "holds other files" in capsys.readouterr().err
