"""Metrics on disk: one JSON object a step in metrics.jsonl, and the same for TensorBoard."""

import json
import math
from pathlib import Path
from types import TracebackType
from typing import Self

from tensorboardX import SummaryWriter

from das_jax.errors import UserError
from das_jax.files import write_text


class MetricsWriter:
    """Writes a stage's metrics; on resuming, lines after the checkpoint's step are dropped, as they
    come again.
    """

    def __init__(self, directory: Path | None, resume_step: int) -> None:
        self._file = self._board = None
        if directory is None:
            return
        path = directory / "metrics.jsonl"
        kept = [line for line in read_lines(path) if json.loads(line)["step"] <= resume_step]
        write_text(path, "".join(line + "\n" for line in kept))
        self._file = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(directory / "tensorboard"), purge_step=resume_step + 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None and self._board is not None:
            self._file.close()
            self._board.close()

    def write(self, step: int, metrics: dict[str, float]) -> None:
        if self._file is None or self._board is None:
            return
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._file.flush()
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)


def read_lines(path: Path) -> list[str]:
    """The whole lines of metrics.jsonl; one that a kill cut short is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [line for line in lines[:-1] if line.endswith("}")]


class NotFiniteError(UserError):
    """A loss part, a gradient or a parameter became infinite or NaN."""


def check_finite(step: int, metrics: dict[str, float], stage: str) -> None:
    """Raises NotFiniteError with the part that is to blame: what a step computes first comes first."""
    summaries = ("loss", "gradient_norm", "parameter_norm")
    for name in (*(name for name in metrics if name not in summaries), *summaries):
        if not math.isfinite(metrics[name]):
            raise NotFiniteError(
                f"{name} became {metrics[name]} at step {step} of {stage}; the run stopped and keeps "
                "its last good checkpoint; lower training.learning_rate and give a new --output_dir"
            )
