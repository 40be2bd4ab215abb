"""Runs whose domains have weights of their own: measured, evaluated and exported with the right ones."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from das_jax import cli
from tests.project import Project, Start

pytestmark = pytest.mark.slow

Capture = pytest.CaptureFixture[str]


def configuration(project: Project, path: Path, name: str) -> Path:
    """The project's, with another method and what that does not know left out."""
    values = yaml.safe_load(project.config.read_text())
    values["method"] = {"name": name}
    path.write_text(yaml.safe_dump(values))
    return path


def losses(run: Path) -> dict[str, dict[str, float]]:
    return json.loads((run / "scores.json").read_text())["heldout_loss"]


def weights(directory: Path) -> dict[str, np.ndarray]:
    return load_file(directory / "model.safetensors")


@pytest.fixture(scope="module")
def demix(project: Project, start: Start, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of experts that was killed while the second was learned, and went on."""
    directory = tmp_path_factory.mktemp("demix")
    config = configuration(project, directory / "demix.yaml", "demix")
    arguments = ["pretrain", config, f"--output_dir={directory / 'run'}"]
    struck = start(*arguments, at="das_jax.training.loop:Recorder.add", number=12)
    assert struck.status < 0, struck.errors
    assert set(losses(directory / "run")) == {"base model", "news", "papers"}
    ended = start(*arguments)
    assert ended.status == 0, ended.errors
    assert "reviews: going on from step" in ended.output
    assert "after papers, news: served by a mixture of news 0." in struck.output
    assert "after papers, papers:" not in struck.output
    return directory / "run"


def test_a_learned_domain_is_never_forgotten(demix: Path) -> None:
    """To the last bit; its expert is all that a domain changes."""
    rows = losses(demix)
    assert rows["reviews"]["papers"] == rows["papers"]["papers"] < rows["news"]["papers"]
    assert rows["reviews"]["news"] != rows["papers"]["news"]
    base, *experts = (
        weights(demix / stage / "huggingface") for stage in ("00-news", "01-papers", "02-reviews")
    )
    for expert in experts:
        changed = {name for name in base if not np.array_equal(base[name], expert[name])}
        assert changed == {
            f"bert.encoder.layer.{layer}.{part}.dense.{name}"
            for layer in (0, 1)
            for part in ("intermediate", "output")
            for name in ("weight", "bias")
        }


def test_tasks_are_asked_of_whoever_serves_them(demix: Path, capsys: Capture) -> None:
    assert cli.main(["evaluate", str(demix)]) == 0
    said = capsys.readouterr().out
    assert "after papers, tone: macro_f1" in said
    found = json.loads((demix / "evaluation.json").read_text())
    topic, tone = (
        {r: x["weights"] for r, x in found["tasks"][t]["rows"].items()} for t in ("topic", "tone")
    )
    assert topic["papers"] == topic["reviews"] != topic["news"], "its domain's own expert"
    for line in said.splitlines():
        if line.startswith(("after papers, tone", "after reviews, tone")):
            row, best = line.split(",")[0].removeprefix("after "), line.rsplit(" ", 1)[1]
            known = {"news": topic["news"], "papers": topic["papers"]}
            assert tone[row] == known.get(best, tone[row])
    assert tone["papers"] in (topic["news"], topic["papers"]), (
        "one expert, as a classifier has one model"
    )
    facts = {r: x["weights"] for r, x in found["cloze"]["facts"]["rows"].items()}
    assert facts["papers"] not in topic.values(), "all experts together"
    assert "after reviews, facts: precision" in said
    assert "served by a mixture of news" in said


@pytest.mark.parametrize(
    ("source", "domain", "stage"),
    [
        ("", "papers", "01-papers"),
        ("02-reviews", "papers", "01-papers"),
        ("", "reviews", "02-reviews"),
    ],
)
def test_a_domains_own_model_is_exported(
    demix: Path, tmp_path: Path, source: str, domain: str, stage: str
) -> None:
    target = tmp_path / "exported"
    assert cli.main(["export", str(demix / source), str(target), "--domain", domain]) == 0
    expected = demix / stage / "huggingface" / "model.safetensors"
    assert (target / "model.safetensors").read_bytes() == expected.read_bytes()


@pytest.mark.parametrize(
    ("source", "domain", "said"),
    [
        ("", "law", "has no domain 'law'; it has papers, reviews"),
        (
            "01-papers",
            "reviews",
            "reviews is not learned yet after papers; give a later stage, or one of papers",
        ),
        ("00-news", "papers", "papers is not learned yet after news; give a later stage"),
    ],
)
def test_a_domain_that_is_not_there_is_one_sentence(
    demix: Path, tmp_path: Path, source: str, domain: str, said: str, capsys: Capture
) -> None:
    arguments = ["export", str(demix / source), str(tmp_path / "exported"), "--domain", domain]
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert len(error.splitlines()) == 1


def test_independent_models_begin_with_the_base(project: Project, tmp_path: Path) -> None:
    """A run that learns the second domain alone, from the same seed of the same stage, is no different."""
    config = configuration(project, tmp_path / "run.yaml", "independent")
    run = tmp_path / "run"
    assert cli.main(["pretrain", str(config), f"--output_dir={run}", "--quiet"]) == 0
    rows = losses(run)
    assert rows["reviews"]["papers"] == rows["papers"]["papers"] < rows["news"]["papers"]
    # Five steps from the base end nearer to it than ten would.
    nets = [
        weights(run / stage / "huggingface") for stage in ("00-news", "01-papers", "02-reviews")
    ]
    steps: Any = [
        max(float(np.abs(net[name] - nets[0][name]).max()) for name in net) for net in nets[1:]
    ]
    assert max(steps) <= 5 * 1e-2 * 1.05


def test_a_pool_is_learned_at_one_go(project: Project, tmp_path: Path, capsys: Capture) -> None:
    config = configuration(project, tmp_path / "run.yaml", "pool")
    run = tmp_path / "run"
    assert cli.main(["pretrain", str(config), f"--output_dir={run}"]) == 0
    rows = losses(run)
    assert list(rows) == ["base model", "news", "all"]
    assert rows["all"]["papers"] < rows["news"]["papers"]
    assert rows["all"]["reviews"] < rows["news"]["reviews"]
    lines = (run / "01-all" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == 2 * 5
    capsys.readouterr()
    assert cli.main(["evaluate", str(run)]) == 0
    shown = capsys.readouterr().out
    measures = {line.split("│")[1].strip() for line in shown.splitlines() if line.startswith("│")}
    assert {"OP", "X-Delta"} <= measures
    assert not measures & {"F", "BWT", "FWT", "plasticity", "forgetting rate"}
    target = tmp_path / "exported"
    assert cli.main(["export", str(run), str(target), "--domain", "reviews"]) == 0
    expected = run / "01-all" / "huggingface" / "model.safetensors"
    assert (target / "model.safetensors").read_bytes() == expected.read_bytes()


def test_the_base_of_grafts_is_made_again_and_they_stay_its_own(
    project: Project, tmp_path: Path
) -> None:
    """After one bit of it has changed: what was trained on it says what it was."""
    config, run = configuration(project, tmp_path / "run.yaml", "adapter"), tmp_path / "run"
    values = yaml.safe_load(config.read_text())
    values["domains"], values["method"]["bottleneck"] = values["domains"][:1], 4
    config.write_text(yaml.safe_dump(values))
    arguments = ["pretrain", str(config), f"--output_dir={run}", "--quiet"]
    assert cli.main(arguments) == 0
    base, graft = (run / stage / "huggingface" for stage in ("00-news", "01-papers"))
    files = base / "model.safetensors", graft / "graft.json"
    expected = [file.read_bytes() for file in files]
    damaged = bytearray(expected[0])
    damaged[-20] ^= 64
    files[0].write_bytes(damaged)
    assert cli.main(arguments) == 0
    assert [file.read_bytes() for file in files] == expected
