"""Cells as they are learned: shared warm-ups, killed and gone on with, failures."""

from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from das_jax.comparing import run
from das_jax.comparing.cells import cells_of, points_of
from das_jax.comparing.file import Comparison
from das_jax.comparing.run import is_finished, run_cells
from das_jax.config.show import to_yaml
from das_jax.errors import UserError
from das_jax.training.console import Console
from das_jax.training.interruption import Interruption
from tests.comparing.conftest import Write
from tests.project import Start
from tests.training.test_resume import LOOP, metrics, results

KILLED: list[tuple[str, dict[str, Any]]] = [
    ("while the warm-up is kept", {"at": "das_jax.comparing.warm_up:_copy", "when": "after"}),
    ("while it is linked", {"at": "das_jax.comparing.warm_up:_copy", "number": 2, "when": "after"}),
    ("between cells", {"at": "das_jax.comparing.run:_learn", "number": 3}),
    ("inside a cell", {"at": LOOP, "number": 8}),
]


@pytest.mark.slow
def test_killed_anywhere_it_ends_as_runs_on_their_own(
    write_comparison: Write, start: Start, tmp_path: Path
) -> None:
    systems = {"plain": {"method.name": "naive"}, "das": {}}
    command = ("compare", write_comparison(systems=systems, orders=2))
    said = ""
    for moment, blow in KILLED:
        ended = start(*command, **blow)
        assert ended.status == -9, f"not killed {moment}: {ended}"
        said += ended.output
    ended = start(*command)
    assert ended.status == 0, ended.errors
    said += ended.output
    assert said.count("news: learned") == 1
    assert "going on from step" in ended.output

    cell = tmp_path / "out/cells/das/only/order-2/seed-0"
    alone = start("pretrain", cell / "config.yaml", f"--output_dir={tmp_path / 'alone'}")
    assert alone.status == 0, alone.errors
    assert results(cell) == results(tmp_path / "alone")
    assert metrics(cell) == metrics(tmp_path / "alone")
    weights = "00-news/huggingface/model.safetensors"
    assert (cell / weights).stat().st_nlink == 5, "four cells and the place where it is kept"

    again = start(*command, "--keep=scores")
    assert (again.status, again.errors) == (0, "")
    assert "all 4 cells are finished; nothing is left to learn" in again.output
    assert not [path for path in cell.rglob("*") if "huggingface" in path.parts]
    assert (cell / "02-papers" / "importance.safetensors").is_file()
    assert (tmp_path / "out/report/index.html").is_file()


@pytest.fixture
def learned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The titles of cells that are learned, where learning is only pretended."""
    titles: list[str] = []

    def learn(cell: Any, console: Console, *others: Any) -> None:
        titles.append(cell.title)
        if cell.point.values["training.learning_rate"] == 1e-3 and cell.seed == 1:
            raise UserError("the loss is not finite; lower the rate")
        cell.run.path.mkdir(parents=True)
        (cell.run.path / "config.yaml").write_text(to_yaml(cell.config))
        (cell.run.path / run.FINISHED).write_text('{"kept": "models", "flops": 1}')

    monkeypatch.setattr(run, "_learn", learn)
    return titles


def test_a_point_that_fails_is_said_and_the_others_go_on(
    grid: Comparison, learned: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    points = [each for each in points_of(grid) if each.system == "plain"]
    cells = cells_of(points, [("papers", "reviews")], [0, 1, 2], tmp_path)
    console, interruption = Console(quiet=True), Interruption()
    (failure,) = run_cells(cells, console, interruption, tmp_path)
    assert failure.reason == "the loss is not finite; lower the rate"
    assert [is_finished(cell) for cell in cells] == [True] * 4 + [False] * 2 + [True] * 3
    assert len(learned) == 8, "the point's other seed is not tried"
    assert "plain (learning_rate=0.001), order 1, seed 1 failed" in capsys.readouterr().out

    learned.clear()
    run_cells(cells, console, interruption, tmp_path)
    assert learned == [failure.cell.title], "what is finished is not learned again"


def test_processes_share_the_points_and_end_with_all_of_them(
    grid: Comparison,
    learned: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    points = [each for each in points_of(grid) if each.system == "plain"]
    cells = cells_of(points, [("papers", "reviews")], [0, 2], tmp_path)
    theirs = cells[0].place / ".lock"
    theirs.parent.mkdir(parents=True)
    with FileLock(theirs) as lock:
        # Whoever is at work on the first point is killed while this process waits for it.
        monkeypatch.setattr(run.time, "sleep", lambda _: lock.release())
        assert run_cells(cells, Console(quiet=True), Interruption(), tmp_path) == []
    assert learned == [cell.title for cell in (*cells[2:], *cells[:2])]
    assert capsys.readouterr().out.count("waiting for the last 2 cells") == 1
    assert all(is_finished(cell) for cell in cells)


def test_a_place_that_holds_another_run_is_refused(grid: Comparison, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    with pytest.raises(UserError, match="is a run, no comparison"):
        run_cells([], Console(quiet=True), Interruption(), tmp_path)
