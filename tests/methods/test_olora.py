"""A run that adds low-rank pairs domain after domain: what stays, what serves, and what peft is given."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from das_jax import cli
from das_jax.config.load import load_config
from das_jax.errors import UserError
from das_jax.model import huggingface
from das_jax.model.grafts.olora import OLoRA
from das_jax.model.language_model import LanguageModel
from tests.methods.test_grafted import configuration, learned, optimized, torch_logits
from tests.project import Project

TARGETS = ("query", "output")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is:FutureWarning")
def test_the_earlier_domains_pairs_stay_and_go_on_adding(project: Project, tmp_path: Path) -> None:
    method = {"name": "olora", "r": 2, "alpha": 6, "targets": [*TARGETS]}
    config = configuration(project, tmp_path / "run.yaml", method)
    run = tmp_path / "run"
    assert cli.main(["pretrain", str(config), f"--output_dir={run}", "--quiet"]) == 0
    stages = [run / "01-papers", run / "02-reviews"]
    first, second = map(learned, stages)

    base = huggingface.load(project.directory / "model")
    for params in (first, second):
        own = {name: part for name, part in params.items() if name != "graft"}
        jax.tree.map(np.testing.assert_array_equal, own, base.params)
    assert "earlier" not in first["graft"]
    jax.tree.map(np.testing.assert_array_equal, second["graft"]["earlier"], first["graft"])
    assert not any("earlier" in path for path in optimized(stages[1]))
    for site in TARGETS:
        assert np.any(second["graft"][site]["up"]["kernel"])

    lines = (stages[1] / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in lines]
    assert all(
        row["loss"] == pytest.approx(row["masked_lm"] + 0.5 * row["overlap"])
        for row in steps
        if "overlap" in row
    )
    assert any(row.get("overlap", 0) > 0 for row in steps)

    tokens = np.array([[2, 5, 9, 30, 11, 12, 3], [2, 7, 4, 20, 51, 60, 3]])
    model = LanguageModel(base.architecture, graft=OLoRA(2, 6.0, TARGETS, earlier=1))
    ours = np.asarray(model.logits(second, model.encode(second, tokens, tokens >= 0)))
    beside = tmp_path / "graft"
    assert cli.main(["export", str(stages[1]), str(beside), "--graft"]) == 0
    about = json.loads((beside / "adapter_config.json").read_text())
    assert (about["r"], about["lora_alpha"]) == (4, 12)
    for exported in (stages[1] / "huggingface", beside):
        theirs = torch_logits(exported, project.directory / "model", tokens)
        np.testing.assert_allclose(theirs, ours, atol=1e-5 * np.abs(ours).max())


def test_what_its_domains_cannot_share(project: Project) -> None:
    for arguments, said in (
        (("--training.second_moment=carried",), "begins every domain with additions of its own"),
        (
            ("--training.schedule=wsd",),
            "keeps the additions of earlier domains as they were served",
        ),
    ):
        with pytest.raises(UserError, match=said):
            load_config(project.config, ["--method={name: olora}", *arguments])
