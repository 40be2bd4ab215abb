"""elle: how much a model grows, what it recovers on, and a run whose model grows."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForMaskedLM

from das_jax import cli
from das_jax.config.load import load_config
from das_jax.data.objective import HiddenTokens
from das_jax.data.stream_batches import stream_batches
from das_jax.data.streams import OWN
from das_jax.errors import UserError
from das_jax.methods.contract import Place
from das_jax.methods.elle import ELLE
from das_jax.methods.settings.growth import ELLESettings, GrowthSettings
from das_jax.model import huggingface
from das_jax.model.architecture import Architecture
from das_jax.model.language_model import LanguageModel
from das_jax.planning.architectures import KNOWN
from das_jax.planning.program import PlannedRun
from das_jax.training.sharding import make_sharding
from tests.methods.test_every_method import left, run
from tests.methods.test_rehearsal import Text, filled
from tests.project import Project


def grows(model: LanguageModel, objective: HiddenTokens, **growth: Any) -> ELLE:
    return ELLE(model, objective, ELLESettings(buffer=16, growth=GrowthSettings(**growth)))


def sizes(architecture: Architecture) -> list[int]:
    return [architecture.sizes[letter] for letter in "LDHF"]


def test_a_model_grows_before_every_domain_but_the_first(
    model: LanguageModel, objective: HiddenTokens
) -> None:
    def of_domains(method: ELLE) -> list[list[int]]:
        places = (Place(index, ("text",), (30,), batch_size=8) for index in range(3))
        return [sizes(method.plan(place).model.architecture) for place in places]

    first = [2, 16, 4, 24]
    units = ELLE(model, objective, ELLESettings(buffer=16))
    assert of_domains(units) == [first, [2, 16, 4, 32], [2, 16, 4, 40]]
    listed = grows(model, objective, feed_forward=(1, 1.5), width=(2, 1), layers=(0, 2))
    assert of_domains(listed) == [first, [2, 32, 8, 24], [4, 32, 8, 40]]
    assert sizes(model.architecture) == first


def test_only_growth_is_recovered_from(model: LanguageModel, objective: HiddenTokens) -> None:
    method = grows(model, objective, feed_forward=(1, 1.5))
    places = [Place(index, ("text",), (30,), batch_size=8) for index in (None, 0, 1, 2)]
    assert [method.plan(place).recovery for place in places] == [0, 0, 0, 0.25]


def test_what_is_recovered_on_and_replayed_is_of_earlier_domains(
    model: LanguageModel, objective: HiddenTokens
) -> None:
    method = ELLE(model, objective, ELLESettings(share=0.25, buffer=10, recovery=0.5))
    plan = method.plan(Place(2, ("text",), (25,), batch_size=8))
    new = {chunk.tobytes() for chunk in Text(2, 25).__getitems__(np.arange(25))}
    kept = filled(method, {}, (20, 30))
    batches = stream_batches(
        *(plan.streams, {OWN: Text(2, 25)}, kept), batch_size=8, seed=0, recovery=3
    )
    found = [sum(row.tobytes() in new for row in next(batches)["tokens"]) for _ in range(6)]
    assert found == [0, 0, 0, 6, 6, 6]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"buffer": 7}, "buffer is 7, fewer than the 8 rows that every batch takes"),
        (
            {"buffer": 8, "growth": GrowthSettings(layers=3)},
            "growth.layers is 3 where the model has 2; copy each once at most",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_the_plan(
    model: LanguageModel, objective: HiddenTokens, settings: dict[str, Any], said: str
) -> None:
    method = ELLE(model, objective, ELLESettings(**settings))
    with pytest.raises(UserError, match=said):
        for index in range(3):
            method.plan(Place(index, ("text",), (30,), batch_size=8))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ("--policies.averaging={}",),
            r"method.name elle cannot be combined with policies\.averaging; leave one of them out",
        ),
        (
            ("--method.recovery=0.05",),
            r"method\.recovery is 0\.05, which makes 0 of 5 steps; change it",
        ),
    ],
)
def test_what_cannot_be_beside_it_is_refused_before_anything_is_learned(
    project: Project, tmp_path: Path, overrides: tuple[str, ...], said: str
) -> None:
    arguments = ["--method={name: elle, buffer: 16}", f"--output_dir={tmp_path / 'run'}"]
    with pytest.raises(UserError, match=said):
        run(load_config(project.config, [*arguments, *overrides]).config)
    assert not (tmp_path / "run" / "00-news" / "checkpoints").exists()


def test_every_size_is_planned(project: Project, tmp_path: Path) -> None:
    """The largest first, each for the steps that it takes."""
    config = load_config(
        project.config,
        ["--method={name: elle, buffer: 16, share: 0.25}", f"--output_dir={tmp_path}"],
    ).config
    planned = PlannedRun(config, KNOWN["demo:bert-tiny"], make_sharding(1))
    largest, first, _ = planned.programs()
    assert (largest.name, first.name) == ("train step", "train step until papers")
    assert (largest.runs, first.runs) == (5, 5)
    assert largest.flops > first.flops


LARGE = {"num_hidden_layers": 3, "hidden_size": 32, "num_attention_heads": 4}


@pytest.fixture(scope="module")
def grown_run(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two domains; before the second the model gets wider and deeper."""
    directory = tmp_path_factory.mktemp("elle")
    task = yaml.safe_load(project.config.read_text())["evaluation"]["tasks"][0]
    evaluation = {"batch_size": 8, "finetune_seeds": 1, "tasks": [{**task, "epochs": 1}]}
    config = project.write(directory / "elle.yaml", evaluation=evaluation)
    growth = "growth: {feed_forward: 1.5, width: 2, layers: 1}"
    overrides = [
        f"--method={{name: elle, buffer: 16, share: 0.25, {growth}}}",
        f"--output_dir={directory / 'run'}",
        "--general=null",
        "--training.steps=4",
    ]
    run(load_config(config, overrides).config)
    return directory / "run"


@pytest.mark.slow
def test_what_grew_is_exported_with_its_sizes(grown_run: Path, tmp_path: Path) -> None:
    small, large = (grown_run / stage / "huggingface" for stage in ("01-papers", "02-reviews"))
    before, after = (json.loads((path / "config.json").read_text()) for path in (small, large))
    assert before == {**after, "num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2,
        "intermediate_size": 24}  # fmt: skip
    assert after.items() >= {**LARGE, "intermediate_size": 40}.items()
    checkpoint = huggingface.load(large)
    tokens = np.arange(5, 25).reshape(2, 10)
    model, mask = LanguageModel(checkpoint.architecture), np.ones((2, 10), bool)
    ours = model.logits(checkpoint.params, model.encode(checkpoint.params, tokens, mask))
    theirs = AutoModelForMaskedLM.from_pretrained(large).eval()
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).logits.numpy()
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5 * np.abs(expected).max())

    for stage, kept in ("01-papers", small), ("02-reviews", large):
        target = tmp_path / stage
        assert cli.main(["export", str(grown_run / stage), str(target)]) == 0
        for name in ("config.json", "model.safetensors"):
            assert (target / name).read_bytes() == (kept / name).read_bytes()


@pytest.mark.slow
def test_what_a_grown_stage_leaves_is_made_again(
    grown_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = tmp_path / "run"
    shutil.copytree(grown_run, again)
    shutil.rmtree(again / "02-reviews" / "huggingface")
    assert cli.main(["pretrain", str(again / "config.yaml"), f"--output_dir={again}"]) == 0
    said = capsys.readouterr().out
    assert "reviews: what it leaves was damaged or lost, and is made again" in said
    assert "papers: what it leaves" not in said
    assert left(again) == left(grown_run)


@pytest.mark.slow
def test_both_sizes_are_evaluated(grown_run: Path) -> None:
    assert cli.main(["evaluate", str(grown_run)]) == 0
    found = json.loads((grown_run / "evaluation.json").read_text())
    (task,) = found["tasks"].values()
    assert len({row["weights"] for row in task["rows"].values()}) == 3
