"""Cells, one after the other, by one process or several; killed anywhere, the same call goes on."""

import contextlib
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import jax
from filelock import FileLock, Timeout
from pydantic import TypeAdapter
from typing_extensions import TypedDict  # Pydantic reads that of typing from Python 3.12 on only.

from das_jax import stopping
from das_jax.comparing.budget import total_flops
from das_jax.comparing.cells import Cell, Point
from das_jax.comparing.warm_up import begin_with_warm_up, keep_warm_up
from das_jax.errors import UserError
from das_jax.evaluation.inputs import check_inputs
from das_jax.files import read_json, write_json
from das_jax.training.console import Console, clock
from das_jax.training.distributed import on_first_host
from das_jax.training.interruption import Interruption
from das_jax.training.metrics import NotFiniteError
from das_jax.training.pretrain import pretrain
from das_jax.training.stages import stages_of

Keep = Literal["models", "scores"]

FINISHED = "cell.json"
"""What says of a run that it is a finished cell, and what is left of it."""


class _Finished(TypedDict):
    kept: Keep
    flops: int


_FINISHED = TypeAdapter(_Finished)

WARM_UPS = "warm-up"
"""Where in a comparison's directory warm-ups are kept."""

SECONDS_BETWEEN_LOOKS = 2
"""How long one waits for what another process learns, before it looks again."""


class Failure(NamedTuple):
    """A cell that could not be learned, and why."""

    cell: Cell
    reason: str


def is_finished(cell: Cell) -> bool:
    """Whether all of a cell is learned and measured."""
    return on_first_host((cell.run.path / FINISHED).is_file)


def flops_of(cell: Cell) -> int:
    """What a finished cell cost: useful FLOPs of learning its domains."""
    remedy = "remove it and start the same command again"
    return read_json(cell.run.path / FINISHED, _FINISHED, remedy)["flops"]


def run_cells(
    cells: Sequence[Cell],
    console: Console,
    interruption: Interruption,
    output_dir: Path,
    keep: Keep = "models",
    warm_ups: Path | None = None,
) -> list[Failure]:
    """Learns what is not finished, each cell as `das-jax pretrain` would with its configuration.

    The warm-up of equal starts is learned by the first and linked into the others. A cell that fails is
    said, and the others of its point are left out; those of other points go on. Of several hosts, all must
    see it fail: what one of them alone cannot do ends all.

    Several processes may be called with the same cells: each takes a point that none of them is at work on,
    for a program that is compiled learns all cells of a point, and all return when all is finished. What one
    leaves that was killed, another takes.

    Args:
      cells: in the order in which they are learned.
      console: where a person watches.
      interruption: says whether somebody asked to stop.
      output_dir: of the comparison.
      keep: what is left of a finished cell: everything, or all but the weights.
      warm_ups: where warm-ups are shared; in output_dir if it is not said.

    Raises:
      UserError: the place of a cell, or of all, holds something else or cannot be written.
      Interrupted: somebody asked to stop; what is finished is kept.
    """
    on_first_host(lambda: _check_place(output_dir))
    for cell in cells:
        on_first_host(lambda cell=cell: cell.run.check(cell.config))  # type: ignore[misc]
    if not _unfinished(cells):
        console.log(f"{output_dir}: all {len(cells)} cells are finished; nothing is left to learn")
    learning = _Learning(cells, console, interruption, keep, warm_ups or output_dir / WARM_UPS)
    while left := learning.points_left():
        took = [learning.take(point) for point in left]
        if not any(took):
            learning.wait()
    for cell in cells:  # One that was killed while its weights were removed.
        on_first_host(lambda cell=cell: _reduce(cell, keep))  # type: ignore[misc]
    return learning.failures


class _Learning:
    """One process's share of the cells."""

    def __init__(
        self,
        cells: Sequence[Cell],
        console: Console,
        interruption: Interruption,
        keep: Keep,
        warm_ups: Path,
    ) -> None:
        self._cells, self._console, self._interruption = cells, console, interruption
        self._keep, self._warm_ups = keep, warm_ups
        self._began, self._left_then = time.monotonic(), len(_unfinished(cells))
        self._waits = False
        self.failures: list[Failure] = []

    def points_left(self) -> list[Point]:
        """Those with something left to learn, failed ones apart."""
        failed = [failure.cell.point for failure in self.failures]
        points: list[Point] = []
        for cell in _unfinished(self._cells):
            if not any(cell.point is each for each in (*failed, *points)):
                points.append(cell.point)
        return points

    def take(self, point: Point) -> bool:
        """Learns what is left of a point, unless another process is at work on it; says whether."""
        cells = [cell for cell in self._cells if cell.point is point]
        with _claimed(cells[0].place) as mine:
            for cell in _unfinished(cells) if mine else ():
                try:
                    self._learn(cell)
                except UserError as error:
                    if not _seen_by_all(error):
                        raise
                    reason = str(error).splitlines()[0]
                    self.failures.append(Failure(cell, reason))
                    self._console.log(f"warning: {cell.title} failed ({reason}); the others go on")
                    break
        return mine

    def wait(self) -> None:
        """A moment, for other processes."""
        if not self._waits:
            left = len(_unfinished(self._cells))
            self._console.log(f"waiting for the last {left} cells, which other processes learn")
        self._waits = True
        stopping.check()
        time.sleep(SECONDS_BETWEEN_LOOKS)

    def _learn(self, cell: Cell) -> None:
        left = len(_unfinished(self._cells))
        done = self._left_then - left
        seconds = (time.monotonic() - self._began) / done * left if done else None
        about = "" if seconds is None else f", about {clock(seconds)} left"
        number = len(self._cells) - left + 1
        self._console.log(f"cell {number} of {len(self._cells)}: {cell.title}{about}")
        self._waits = False
        _learn(cell, self._console, self._interruption, self._warm_ups, self._keep)


def _unfinished(cells: Sequence[Cell]) -> list[Cell]:
    finished = on_first_host(lambda: [(cell.run.path / FINISHED).is_file() for cell in cells])
    return [cell for cell, its in zip(cells, finished, strict=True) if not its]


def _learn(
    cell: Cell, console: Console, interruption: Interruption, warm_ups: Path, keep: Keep
) -> None:
    stopping.check()
    on_first_host(lambda: begin_with_warm_up(cell.config, warm_ups))
    try:
        pretrain(cell.config, console, interruption, lambda _: None, check_inputs)
    except UserError as error:
        if _seen_by_all(error):
            on_first_host(lambda: keep_warm_up(cell.config, warm_ups))
        raise
    on_first_host(lambda: keep_warm_up(cell.config, warm_ups))
    flops = total_flops(cell.config)  # What grows with the domains depends on their order.
    on_first_host(lambda: write_json(cell.run.path / FINISHED, {"kept": keep, "flops": flops}))
    on_first_host(lambda: _reduce(cell, keep))


def _seen_by_all(error: UserError) -> bool:
    """Whether no host is left waiting in the cell that failed: all have the numbers that are not finite."""
    return jax.process_count() == 1 or isinstance(error, NotFiniteError)


def _reduce(cell: Cell, keep: Keep) -> None:
    """Removes the weights of a finished cell, if they are not to be kept."""
    if keep == "models" or not (cell.run.path / FINISHED).is_file():
        return
    for stage in stages_of(cell.config):
        place = cell.run.stage(stage.number, stage.name)
        for weights in ("checkpoints", "huggingface"):
            shutil.rmtree(place / weights, ignore_errors=True)
        (place / "checkpoints").mkdir(exist_ok=True)  # It was learned.


@contextlib.contextmanager
def _claimed(place: Path) -> Iterator[bool]:
    """Keeps a directory for this process; says whether no other has it. The first host answers for all."""
    with contextlib.ExitStack() as stack:

        def claim() -> bool:
            place.mkdir(parents=True, exist_ok=True)
            lock = FileLock(place / ".lock")
            try:
                lock.acquire(timeout=0)  # The operating system frees it when its holder dies.
            except Timeout:
                return False
            stack.callback(lock.release)
            return True

        yield on_first_host(claim)


def _check_place(output_dir: Path) -> None:
    if (output_dir / "config.yaml").exists():
        raise UserError(
            f"output_dir {output_dir} is a run, no comparison; give another with --output_dir=DIR"
        )
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output_dir):
            pass
    except OSError as error:
        raise UserError(
            f"output_dir {output_dir} cannot be written ({error.strerror}); give another with "
            "--output_dir=DIR"
        ) from error
