"""Killed anywhere and started again, a run ends as the run that was never killed."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from tests.project import Project, Start

pytestmark = pytest.mark.slow

TIMES = (
    *("tokens_per_second", "flops_per_second", "seconds_per_step", "seconds_to_first_step"),
    "peak_bytes",
    "waiting",
)


def results(directory: Path) -> dict[str, bytes]:
    """Bytes of all that a run leaves and that must not depend on its interruptions."""
    found = {"scores.json": (directory / "scores.json").read_bytes()}
    for path in directory.glob("*/huggingface/*"):
        found[str(path.relative_to(directory))] = path.read_bytes()
    for path in directory.glob("*/importance*.safetensors"):
        # The header of a safetensors file is in no certain order.
        for name, array in load_file(path).items():
            found[f"{path.relative_to(directory)} {name}"] = array.tobytes()
    assert len(found) == 1 + 3 * 4 + 3 * 15, sorted(found)
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
    ("while the first checkpoint is saved", {"at": SAVE, "when": "after"}, ""),
    ("in the first steps", {"at": LOOP, "number": 2}, ""),
    ("while another checkpoint is saved", {"at": SAVE, "number": 2, "when": "after"}, ""),
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
        "once more, with what was measured before it",
        {"at": LOOP, "number": 1},
        "papers: going on from step",
    ),
    (
        "between training and importance",
        {"at": "das_jax.methods.das.das:DAS.end"},
        "papers: going on from step",
    ),
    (
        "after the importance pass",
        {"at": "das_jax.methods.das.importance_map:save", "when": "after"},
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
    ("at the last checkpoint of the last domain", {"at": SAVE, "number": 4, "when": "after"}, ""),
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


def test_sigterm(project: Project, start: Start, reference: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    command = ("pretrain", project.config, f"--output_dir={directory}")
    gone_on = "the same command goes on from"
    for at, number, name, line in (
        ("das_jax.training.workspace:Workspace.corpus", 2, "SIGTERM", f"{gone_on} there"),
        (LOOP, 1, "SIGTERM", f"news: stopped at step 1 of 4 and saved; {gone_on} here"),
        (
            "das_jax.training.sharding:Sharding.shard_batch",
            7,  # Three steps, the held-out loss of three corpora, and into the importance pass.
            "SIGTERM",
            f"{gone_on} there",
        ),
        (LOOP, 3, "SIGINT", f"papers: stopped at step 3 of 5 and saved; {gone_on} here"),
    ):
        ended = start(*command, at=at, number=number, name=name)
        assert ended.status == (0 if name == "SIGTERM" else 130), ended
        assert ended.output.count("stopped") == 1
        assert ended.output.splitlines()[-1].endswith(line)
        assert ended.errors == ""
        assert ended.seconds < 15, "a few seconds, on a busy machine"
    ended = start(*command)
    assert ended.status == 0, ended.errors
    assert ended.output.startswith("papers: going on from step 3")
    assert results(directory) == results(reference)
    assert steps(directory) == {
        "00-news": [1, 2, 3, 4],
        "01-papers": [2, 3, 4, 5],
        "02-reviews": [2, 3, 4, 5],
    }


def test_sigterm_while_text_is_prepared(project: Project, start: Start, tmp_path: Path) -> None:
    command = ("prepare", project.config, "--data.length=12", f"--data.cache_dir={tmp_path}")
    at = "das_jax.data.chunks:ChunkBuilder._examples"
    ended = start(*command, at=at, name="SIGTERM")
    assert (ended.status, ended.errors) == (0, "")
    assert len(ended.output.splitlines()) == 1
    assert "stopped; what is finished is kept" in ended.output
    assert not [path for path in (tmp_path / "corpora").iterdir() if path.is_dir()]
    assert start(*command).status == 0


def test_what_was_damaged_or_deleted_is_made_again(
    project: Project, start: Start, reference: Path, tmp_path: Path
) -> None:
    """The checkpoints decide: after damage to all that a finished run leaves, and in the middle of one."""
    whole, half = tmp_path / "whole", tmp_path / "half"
    shutil.copytree(reference, whole)
    (whole / "scores.json").write_text("{")
    (whole / "inputs.json").write_bytes(b"")
    for name in ("base", "report", "01-papers/huggingface"):
        shutil.rmtree(whole / name)
    shutil.copytree(whole, half)
    weights = whole / "02-reviews" / "huggingface" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    (whole / "00-news" / "huggingface" / "tokenizer_config.json").unlink()
    ended = start("pretrain", project.config, f"--output_dir={whole}")
    assert (ended.status, ended.errors) == (0, "")
    assert ended.output.count("what it leaves was damaged or lost, and is made again") == 4
    assert results(whole) == results(reference)
    assert (whole / "base" / "tokenizer.json").is_file()
    assert (whole / "report" / "index.html").is_file()

    # The last stage is learned beside what cannot be repaired, and beside a file where the report belongs.
    shutil.rmtree(half / "02-reviews")
    (half / "report").touch()
    cut = half / "01-papers" / "importance.safetensors"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    ended = start("pretrain", project.config, f"--output_dir={half}")
    assert (ended.status, ended.errors) == (0, "")
    assert "warning: the report is not written (" in ended.output
    assert f"warning: importance map {cut} cannot be read" in ended.output
    shutil.copy(reference / "01-papers" / cut.name, cut)
    assert results(half) == results(reference)
    again = start("pretrain", project.config, f"--output_dir={half}")
    assert f"{half} is finished; nothing is left to do" in again.output


def damage(checkpoint: Path, kind: str) -> None:
    """Cuts the largest file short, or flips some of its bits."""
    largest = max(checkpoint.rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
    content = bytearray(largest.read_bytes())
    middle = len(content) // 2
    if kind == "cut":
        del content[middle:]
    else:
        content[middle : middle + 8] = bytes(byte ^ 0x55 for byte in content[middle : middle + 8])
    largest.write_bytes(content)


def test_damaged_checkpoints(
    project: Project, start: Start, reference: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "run"
    shutil.copytree(reference, directory)
    checkpoints = directory / "02-reviews" / "checkpoints"
    assert {path.name for path in checkpoints.iterdir()} == {"5", "6"}
    for broken, said in (
        ({"6": "cut"}, "reviews: going on from step 5"),
        ({"6": "flipped", "5": "cut"}, "reviews: 5/5"),  # From the first step.
    ):
        for step, kind in broken.items():
            damage(checkpoints / step, kind)
        ended = start("pretrain", project.config, f"--output_dir={directory}")
        assert ended.status == 0, ended.errors
        for step in broken:
            assert f"warning: the checkpoint {checkpoints / step} is damaged" in ended.output
        assert ended.output.count("warning: the checkpoint") == len(broken)
        assert said in ended.output
        assert results(directory) == results(reference)
        assert metrics(directory) == metrics(reference)
