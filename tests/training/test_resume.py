"""Killed anywhere and started again, a run ends as the run that was never killed."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.training.conftest import Project, Start

pytestmark = pytest.mark.slow

TIMES = ("tokens_per_second", "seconds_per_step")


def results(directory: Path) -> dict[str, bytes]:
    """All that a run leaves and that must not depend on its interruptions."""
    patterns = ("*/huggingface/*", "*/importance*.safetensors", "scores.json")
    found = {
        str(path.relative_to(directory)): path.read_bytes()
        for pattern in patterns
        for path in directory.glob(pattern)
    }
    assert len(found) == 3 * 4 + 3 + 1, sorted(found)
    return found


def metrics(directory: Path) -> dict[str, list[dict[str, Any]]]:
    """Everything measured but the time it took."""
    return {
        path.parent.name: [
            {name: value for name, value in json.loads(line).items() if name not in TIMES}
            for line in path.read_text().splitlines()
        ]
        for path in directory.glob("*/metrics.jsonl")
    }


def steps(directory: Path) -> dict[str, list[int]]:
    return {stage: [row["step"] for row in rows] for stage, rows in metrics(directory).items()}


LOOP = "das_jax.training.loop:Recorder.add"
SAVE = "das_jax.training.checkpoint:Checkpoints.save"
# Moments of a run in the order in which they come. Each strikes the process that went on from the one
# before; what that process says first shows that it went on and did not start again.
KILLED: list[tuple[str, dict[str, Any], str]] = [
    ("while config.yaml is written", {"at": "das_jax.files:os.replace"}, ""),
    (
        "while base/ is written",
        {"at": "das_jax.model.huggingface_config:write_config", "when": "after"},
        "",
    ),
    ("in the first steps", {"at": LOOP, "number": 2}, ""),
    ("while the second checkpoint is saved", {"at": SAVE, "number": 2, "when": "after"}, ""),
    (
        "while the warm-up is exported",
        {"at": "das_jax.model.huggingface:write_weights", "when": "after"},
        "news: going on from step",
    ),
    (
        "between the warm-up and the first domain",
        {"at": "das_jax.training.results:Results.summary"},
        "news: going on from step",
    ),
    (
        "in the importance pass before the first domain",
        {"at": "das_jax.training.sharding:Sharding.shard_batch", "number": 2},
        "",
    ),
    (
        "while the first domain is learned",
        {"at": SAVE, "number": 2, "when": "after"},
        "papers: importance of general knowledge",
    ),
    (
        "between training and importance",
        {"at": "das_jax.continual.das:DAS.after_domain"},
        "papers: going on from step",
    ),
    (
        "after the importance pass",
        {"at": "das_jax.continual.importance_map:save", "when": "after"},
        "papers: going on from step",
    ),
    (
        "while the scores are written",
        {"at": "das_jax.training.run_directory:RunDirectory.write_scores", "when": "after"},
        "papers: going on from step 5",
    ),
    (
        "while the first domain is called finished",
        {"at": SAVE, "when": "after"},
        "papers: going on from step 5",
    ),
    ("at the last checkpoint of the last domain", {"at": SAVE, "number": 3, "when": "after"}, ""),
]


def test_sigkill(project: Project, start: Start, reference: Path, tmp_path: Path) -> None:
    command = ("pretrain", project.config, f"--output_dir={tmp_path / 'run'}")
    for moment, blow, said in KILLED:
        ended = start(*command, **blow)
        assert ended.status == -9, f"not killed {moment}: {ended}"
        assert ended.output.startswith(said), f"{moment}: {ended.output}"
    ended = start(*command)
    assert ended.status == 0, ended.errors
    assert "damaged" not in ended.output
    assert results(tmp_path / "run") == results(reference)
    assert metrics(tmp_path / "run") == metrics(reference)
    assert not [path for path in (tmp_path / "run").rglob("*") if "tmp" in path.name]
