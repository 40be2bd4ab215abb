"""Metrics on disk: one JSON object a step in metrics.jsonl, and the same for TensorBoard."""

import contextlib
import errno
import json
import math
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple, Self

from pydantic import FiniteFloat, TypeAdapter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import masked_crc32c

from das_jax.errors import UserError
from das_jax.files import write_text

Row = dict[str, float]
"""A line of metrics.jsonl: the `step`, and every metric by its name."""


class MetricsWriter:
    """Writes a stage's metrics; on resuming, lines after the checkpoint's step are dropped, as they
    come again.

    Metrics only report: where they cannot be written, that is said once, and training goes on.
    """

    def __init__(
        self, directory: Path | None, resume_step: int, log: Callable[[str], None] = print
    ) -> None:
        self._log = log
        self._lines: BinaryIO | None = None
        self._board: BinaryIO | None = None
        self._cut = self._said = False
        if directory is None:
            return
        path, board = directory / "metrics.jsonl", directory / "tensorboard"
        with self._going_on_without(path):
            kept = [line for line in read_lines(path) if json.loads(line)["step"] <= resume_step]
            write_text(path, "".join(line + "\n" for line in kept))
            self._lines = path.open("ab", buffering=0)
        with self._going_on_without(board):
            self._board = _open_board(board, resume_step + 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for file in (self._lines, self._board):
            if file is not None:
                with self._going_on_without(file.name):
                    file.close()

    def write(self, step: int, metrics: dict[str, float]) -> None:
        if self._lines is not None:
            line = json.dumps({"step": step, **metrics}) + "\n"
            # After one that could be written in part only: on a line of its own.
            content = ("\n" * self._cut + line).encode()
            self._cut = True
            with self._going_on_without(self._lines.name):
                _append(self._lines, content)
                self._cut = False
        if self._board is not None:
            board, self._board = self._board, None
            with self._going_on_without(board.name):
                try:
                    _append(board, _record(_scalars(step, metrics)))
                except OSError:
                    board.close()  # Half a record would hide all that follow.
                    raise
                self._board = board

    @contextlib.contextmanager
    def _going_on_without(self, what: object) -> Iterator[None]:
        try:
            yield
        except (OSError, UserError) as error:
            if not self._said:
                self._said = True
                reason = getattr(error, "strerror", None) or error
                self._log(
                    f"warning: {what} cannot be written ({reason}); training goes on without it"
                )


def _append(file: BinaryIO, content: bytes) -> None:
    """Writes all of it to a file without a buffer, or raises OSError."""
    if file.write(content) < len(content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _open_board(directory: Path, purge_step: int) -> BinaryIO:
    """A file for TensorBoard that is written at once: a SummaryWriter's queue waits for ever for a thread
    that a full disk has ended.

    Args:
      directory: of such files.
      purge_step: what older files say of it and of later steps is not shown.
    """
    directory.mkdir(parents=True, exist_ok=True)
    now = time.time()
    name = f"events.out.tfevents.{int(now)}.{socket.gethostname()}.{os.getpid()}"
    board = (directory / name).open("ab", buffering=0)
    start = SessionLog(status=SessionLog.START)
    try:
        _append(board, _record(Event(wall_time=now, file_version="brain.Event:2")))
        _append(board, _record(Event(wall_time=now, step=purge_step, session_log=start)))
    except OSError:
        board.close()
        raise
    return board


def _scalars(step: int, metrics: dict[str, float]) -> Event:
    values = [Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
    return Event(wall_time=time.time(), step=step, summary=Summary(value=values))


def _record(event: Event) -> bytes:
    """An event as TensorBoard's files hold it: its length and itself, each with a checksum."""
    data = event.SerializeToString()
    parts = [struct.pack("<Q", len(data)), data]
    return b"".join(part + struct.pack("<I", masked_crc32c(part)) for part in parts)


class Rows(NamedTuple):
    """What a metrics.jsonl holds.

    Attributes:
      lines: those that are whole, of ascending steps.
      damaged: how many others there are; what follows the last line's end may be a line that a kill
        cut short and does not count.
    """

    lines: list[str]
    damaged: int


def read_lines(path: Path) -> list[str]:
    """The whole lines of metrics.jsonl; one that a kill cut short is left out.

    Raises:
      OSError: it cannot be read.
    """
    return read_rows(path).lines


def read_rows(path: Path) -> Rows:
    """The whole lines of metrics.jsonl, none if there is no such file, and how many are damaged.

    Raises:
      OSError: it cannot be read.
    """
    try:
        *lines, _ = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return Rows([], 0)
    whole: list[str] = []
    step = damaged = 0
    for line in filter(None, lines):
        row = _row(line)
        if row is not None and row["step"] > step:
            step = int(row["step"])
            whole.append(line.decode())
        else:
            damaged += 1
    return Rows(whole, damaged)


def _row(line: bytes) -> Row | None:
    """A line, None if it is damaged."""
    try:
        row = _ROW.validate_json(line, strict=True)
    except ValueError:
        return None
    return row if float(row.get("step", 0.5)).is_integer() else None


_ROW = TypeAdapter(dict[str, FiniteFloat])


class NotFiniteError(UserError):
    """A loss part, a gradient or a parameter became infinite or NaN."""


def check_finite(step: int, metrics: dict[str, float], stage: str) -> None:
    """Raises NotFiniteError with the part that is to blame: what a step computes first comes first."""
    summaries = ("loss", "gradient_norm", "parameter_norm")
    ordered = (*(name for name in metrics if name not in summaries), *summaries)
    check_parts(
        {name: metrics[name] for name in ordered},
        f"at step {step} of {stage}",
        "the run stopped and keeps its last good checkpoint; lower training.learning_rate and give a new "
        "--output_dir",
    )


def check_parts(parts: dict[str, float], where: str, remedy: str) -> None:
    """Raises NotFiniteError for the first of the parts that is infinite or NaN.

    Args:
      parts: numbers by name, the causes before their consequences.
      where: at which step of what.
      remedy: what became of the rest, and what to do.
    """
    for name, value in parts.items():
        if not math.isfinite(value):
            raise NotFiniteError(f"{name} became {value} {where}; {remedy}")
