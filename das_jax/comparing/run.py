"""Cells, one after the other; killed anywhere, the same call goes on."""

import contextlib
import shutil
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
from das_jax.comparing.cells import Cell
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

    Args:
      cells: in the order in which they are learned.
      console: where a person watches.
      interruption: says whether somebody asked to stop.
      output_dir: of the comparison.
      keep: what is left of a finished cell: everything, or all but the weights.
      warm_ups: where warm-ups are shared; in output_dir if it is not said.

    Raises:
      UserError: another process is at work there, or the place of a cell holds something else.
      Interrupted: somebody asked to stop; what is finished is kept.
    """
    with _claimed(output_dir):
        for cell in cells:
            on_first_host(lambda cell=cell: cell.run.check(cell.config))  # type: ignore[misc]
        left = [cell for cell in cells if not is_finished(cell)]
        if not left:
            console.log(
                f"{output_dir}: all {len(cells)} cells are finished; nothing is left to learn"
            )
        failures: list[Failure] = []
        began = time.monotonic()
        for done, cell in enumerate(left):
            if any(failed.cell.point is cell.point for failed in failures):
                continue
            seconds = (time.monotonic() - began) / done * (len(left) - done) if done else None
            about = "" if seconds is None else f", about {clock(seconds)} left"
            number = len(cells) - len(left) + done + 1
            console.log(f"cell {number} of {len(cells)}: {cell.title}{about}")
            try:
                _learn(cell, console, interruption, warm_ups or output_dir / WARM_UPS, keep)
            except UserError as error:
                if not _seen_by_all(error):
                    raise
                reason = str(error).splitlines()[0]
                failures.append(Failure(cell, reason))
                console.log(f"warning: {cell.title} failed ({reason}); the others go on")
        for cell in cells:  # One that was killed while its weights were removed.
            on_first_host(lambda cell=cell: _reduce(cell, keep))  # type: ignore[misc]
        return failures


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
def _claimed(output_dir: Path) -> Iterator[None]:
    """Keeps the directory for this process; the first host answers for all."""
    with contextlib.ExitStack() as stack:

        def claim() -> None:
            if (output_dir / "config.yaml").exists():
                raise UserError(
                    f"output_dir {output_dir} is a run, no comparison; give another with --output_dir=DIR"
                )
            try:
                output_dir.mkdir(parents=True, exist_ok=True)
                lock = FileLock(output_dir / ".lock")
                lock.acquire(timeout=0)
            except Timeout as error:
                raise UserError(
                    f"another process is at work in output_dir {output_dir}; wait for its end or stop it, or "
                    "give another with --output_dir=DIR"
                ) from error
            except OSError as error:
                raise UserError(
                    f"output_dir {output_dir} cannot be written ({error.strerror}); give another with "
                    "--output_dir=DIR"
                ) from error
            stack.callback(lock.release)

        on_first_host(claim)
        yield
