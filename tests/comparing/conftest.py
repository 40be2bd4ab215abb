"""Comparisons over the tiny project, and cells made by hand."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from das_jax.comparing.cells import Cell, cells_of, points_of
from das_jax.comparing.file import Comparison, read_comparison
from das_jax.comparing.run import FINISHED
from das_jax.config.show import to_yaml
from tests.project import Project

Write = Callable[..., Path]
"""`write_comparison(systems={...}, orders=2, ...)`: the file of a comparison, its output_dir beside it."""

Scores = Callable[[Cell], tuple[float, float, float]]
"""Of a cell: what is forgotten of the first domain, and the last loss on held-out and validation text."""


@pytest.fixture
def write_comparison(project: Project, tmp_path: Path) -> Write:
    def write(**keys: Any) -> Path:
        path = tmp_path / "comparison.yaml"
        values = {"config": str(project.config), "output_dir": str(tmp_path / "out"), **keys}
        path.write_text(yaml.safe_dump(values, sort_keys=False))
        return path

    return write


def cells_by_hand(
    comparison: Comparison, orders: Sequence[tuple[str, ...]], seeds: Sequence[int], scores: Scores
) -> list[Cell]:
    """Finished cells of a comparison that were never learned: the loss on a domain is 3 before it is learned,
    and as `scores` says after all.
    """
    cells = cells_of(points_of(comparison), orders, seeds, comparison.output_dir)
    for cell in cells:
        finish_by_hand(cell, scores)
    return cells


def finish_by_hand(cell: Cell, scores: Scores) -> None:
    """Writes what a finished cell leaves."""
    path = cell.run.path
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(to_yaml(cell.config))
    names = [domain.name for domain in cell.config.domains]
    forgotten, *last = scores(cell)
    matrices = [
        {
            "base model": {"news": 5.0} | dict.fromkeys(names, 4.0),
            "news": {"news": 2.0} | dict.fromkeys(names, 3.0),
            names[0]: {"news": 2.25, names[0]: loss - forgotten, names[1]: 3.0},
            names[1]: {"news": 2.5, names[0]: loss, names[1]: loss},
        }
        for loss in last
    ]
    cell.run.write_scores(*matrices, "nats per masked token")
    texts = {f"the text of {name}": name for name in ("news", *names)}
    inputs = {**texts, f"the model {cell.config.model.path}": "weights"}
    (path / "inputs.json").write_text(json.dumps(inputs))
    flops = 1000 * (1 + len(cell.point.system))
    (path / FINISHED).write_text(json.dumps({"kept": "scores", "flops": flops}))


@pytest.fixture
def grid(write_comparison: Write) -> Comparison:
    """Two systems over three learning rates, one of them over strengths, too."""
    return read_comparison(
        write_comparison(
            systems={
                "plain": {"method.name": "naive"},
                "ewc": {"method.name": "ewc", "vary": {"method.strength": [5.0, 50.0]}},
            },
            vary={"training.learning_rate": [1e-4, 1e-3, 1e-2]},
        )
    )
