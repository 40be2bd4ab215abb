from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from rich.console import Console

from das_jax.evaluation.importance_report import COLUMNS, importance_table, write_heat_map
from das_jax.model.units import Units

HEADS = np.array([[0.0, 1.0], [0.95, 0.25]], np.float32)
WIDE = np.tile(np.linspace(0, 1, 3 * COLUMNS + 1, dtype=np.float32), (2, 1))
IMPORTANCE = Units(HEADS, WIDE, HEADS)  # type: ignore[arg-type]


def cells(capsys: pytest.CaptureFixture[str], standard_error: Units | None) -> list[list[str]]:
    raw = Units(*(x * 2e-3 + 1e-3 for x in IMPORTANCE))
    Console(width=120).print(importance_table(IMPORTANCE, raw, standard_error))
    lines = capsys.readouterr().out.splitlines()
    return [
        [cell.strip() for cell in line.strip("│").split("│")]
        for line in lines
        if line.startswith("│")
    ]


def test_a_row_for_every_layer_and_kind(capsys: pytest.CaptureFixture[str]) -> None:
    error = Units(*(x * 2e-4 + 1e-4 for x in IMPORTANCE))
    rows = cells(capsys, error)
    assert [row[:3] for row in rows[:3]] == [
        ["0", "heads", "2"],
        ["0", "intermediate", str(3 * COLUMNS + 1)],
        ["0", "output", "2"],
    ]
    # mean I, what the mask leaves, above 0.9, mean of the raw map, relative error
    assert rows[0][3:] == ["0.500", "0.500", "50.0%", "2.000e-03", "10.0%"]
    assert rows[3][3:] == ["0.600", "0.400", "50.0%", "2.200e-03", "10.0%"]
    assert len(rows) == 6


def test_an_error_that_nobody_knows(capsys: pytest.CaptureFixture[str]) -> None:
    rows = cells(capsys, None)
    assert {row[-1] for row in rows} == {"unknown"}


def test_the_heat_map_is_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "maps" / "acl.png"
    write_heat_map(path, IMPORTANCE)
    pixels = matplotlib.image.imread(path)
    assert pixels.shape[1] > 2 * pixels.shape[0] > 200
    assert len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)) > 100, "many shades"
    assert [file.name for file in path.parent.iterdir()] == ["acl.png"]
