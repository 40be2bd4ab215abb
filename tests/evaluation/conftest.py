"""Run directories made by hand: a warm-up on news, then acl and reviews."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from das_jax.methods.das import importance_map
from das_jax.methods.das.importance import RawImportance
from das_jax.model.architecture import Architecture
from das_jax.model.huggingface_config import architecture_of
from das_jax.model.units import Units, unit_shapes
from das_jax.training.run_directory import RunDirectory

MODEL = {
    "model_type": "bert",
    "vocab_size": 32,
    "num_hidden_layers": 2,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 20,
    "max_position_embeddings": 16,
}
HELDOUT = {
    "base model": {"news": 8.0, "acl": 9.0, "reviews": 8.5},
    "news": {"news": 4.0, "acl": 5.0, "reviews": 5.5},
    "acl": {"news": 4.5, "acl": 3.0, "reviews": 5.5001},
    "reviews": {"news": 4.25, "acl": 3.25, "reviews": 2.0},
}
ROWS = tuple(HELDOUT)

MakeRun = Callable[..., Path]
"""`make_run("das", seed=1, method="naive", heldout=..., evaluation=..., inputs=..., **settings)`."""


def end_task(domain: str | None, *scores: list[float], key: str = "k") -> dict[str, Any]:
    """An entry of evaluation.json: the accuracies of all rows by up to three fine-tuning seeds."""
    rows = {
        row: {"weights": row, "seeds": [0, 1, 2][: len(each)], "scores": {"accuracy": each}}
        for row, each in zip(ROWS, scores, strict=True)
    }
    baselines = {"majority": {"accuracy": 0.25}, "TF-IDF": {"accuracy": 0.375}}
    head = {"key": key, "domain": domain, "metric": "accuracy", "classes": ["a", "b"]}
    return {**head, "baselines": baselines, "rows": rows}


def facts(knowledge: str, precisions: list[float], key: str = "k") -> dict[str, Any]:
    rows = {
        row: {"weights": row, "precision": each} for row, each in zip(ROWS, precisions, strict=True)
    }
    return {"key": key, "knowledge": knowledge, "facts": 8, "rows": rows}


EVALUATION = {
    "tasks": {
        "intent": end_task("acl", [0.3] * 3, [0.4] * 3, [0.7, 0.75, 0.8], [0.6] * 3),
        "stars": end_task("reviews", [0.2] * 3, [0.5] * 3, [0.45] * 3, [0.9] * 3),
    },
    "cloze": {
        "capitals": facts("kept", [0.1, 0.5, 0.4, 0.3]),
        "ministers": facts("updated", [0.1, 0.1, 0.2, 0.3]),
        "papers": facts("new", [0.0, 0.0, 0.1, 0.2]),
    },
}


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    return functools.partial(write_run, tmp_path)


def write_run(
    parent: Path,
    name: str,
    seed: int = 0,
    method: str | dict[str, Any] = "das",
    heldout: dict[str, dict[str, float]] = HELDOUT,
    evaluation: dict[str, Any] | None = None,
    inputs: dict[str, str] | None = None,
    **settings: Any,
) -> Path:
    directory = RunDirectory(parent / name)
    method = {"name": method} if isinstance(method, str) else method
    sources = {name: {"kind": "demo", "name": name} for name in ("news", "acl", "reviews")}
    config = {
        "output_dir": str(directory.path),
        "seed": seed,
        "model": {"path": "demo:bert-tiny"},
        "general": {"name": "news", "source": sources["news"], "steps": 4},
        "domains": [{"name": name, "source": sources[name]} for name in ("acl", "reviews")],
        "method": method,
        **settings,
    }
    directory.base.mkdir(parents=True)
    (directory.path / "config.yaml").write_text(yaml.safe_dump(config))
    (directory.path / "run.json").write_text('{"das_jax": "0.1.0", "devices": "1 x <cpu>"}')
    (directory.base / "config.json").write_text(json.dumps(MODEL))
    hashes = {"the text of news": "n", "the text of acl": "a", "the model demo:bert-tiny": "m"}
    (directory.path / "inputs.json").write_text(json.dumps(inputs or hashes))
    directory.write_scores(heldout, None, "nats per masked token")
    if evaluation is not None:
        directory.evaluation.write_text(json.dumps(evaluation))
    architecture = architecture_of(directory.base)
    for number, stage in enumerate(row for row in heldout if row != "base model"):
        write_stage(directory.stage(number, stage), method["name"], seed, architecture)
    return directory.path


def write_stage(stage: Path, method: str, seed: int, architecture: Architecture) -> None:
    """Two lines of metrics and, of a domain that was learned with DAS, its maps."""
    stage.mkdir()
    warm_up = stage.name.startswith("00")
    masks = {"effective_mask/heads": 0.5, "effective_mask/output": 0.25}
    lines = [
        {
            "step": step,
            "loss": 6.0,
            "masked_lm": 5.0 - step / 10 + seed,
            "tokens_per_second": 100.0,
            "flops_per_second": 1000.0,
            "seconds_per_step": 0.5,
            **({} if warm_up or method != "das" else masks),
        }
        for step in (2, 4)
    ]
    (stage / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if method == "das" and not warm_up:
        names = ["importance"] + ["importance-general"] * stage.name.startswith("01")
        for number, name in enumerate(names):
            generator = np.random.default_rng([int(stage.name[:2]), number, seed])
            write_map(stage / f"{name}.safetensors", architecture, generator)


def write_map(path: Path, architecture: Architecture, generator: np.random.Generator) -> None:
    """A random map whose two halves rank the units alike."""
    mean = Units(**{k: generator.uniform(size=s) for k, s in unit_shapes(architecture).items()})
    halves = Units(*(np.stack([0.9 * raw, 1.1 * raw]) for raw in mean))  # type: ignore[arg-type]
    raw = RawImportance(mean, mean, halves, examples=8)
    importance_map.save(
        path, architecture, raw, mean, Units(*(np.full_like(m, 0.75) for m in mean))
    )  # type: ignore[arg-type]
