"""What a person sees while a run goes on: one progress line per stage, or plain lines without a terminal."""

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax
import rich.console
import rich.status
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

PLAIN_INTERVAL = 30.0
"""Seconds between two plain progress lines."""


class Line:
    """One line of progress."""

    def __init__(self, console: "Console", title: str, total: int, done: int) -> None:
        self._console, self._title, self._total = console, title, total
        self._start, self._first, self._last = time.monotonic(), done, time.monotonic()
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        if console.live:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeRemainingColumn(),
            )
            self._progress = Progress(*columns, console=console.rich)
            self._task = self._progress.add_task(title, total=total, completed=done, note="")
            self._progress.start()

    def update(self, done: int, note: str = "") -> None:
        """Shows that `done` of the total are done."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, note=note)
            return
        now = time.monotonic()
        if done >= self._total or now - self._last >= PLAIN_INTERVAL:
            self._last = now
            rate = (now - self._start) / max(done - self._first, 1)
            left = _clock(rate * (self._total - done))
            self._console.log(
                f"{self._title}: {done}/{self._total} {note} {left} left".replace("  ", " ")
            )

    def stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()


class Console:
    """Prints for the first host only; `quiet`, or an output that is no terminal, gives plain lines."""

    def __init__(self, quiet: bool = False) -> None:
        self.rich = rich.console.Console(
            soft_wrap=True, highlight=False, quiet=jax.process_index() != 0
        )
        self.live = self.rich.is_terminal and not quiet and jax.process_index() == 0

    def log(self, sentence: str) -> None:
        """Prints a line above the progress."""
        self.rich.print(sentence, markup=False)

    @contextmanager
    def counter(self, title: str) -> Iterator[Callable[[int, int], None]]:
        """Yields a function that shows how many documents and tokens are done, of a number nobody knows."""
        start = last = time.monotonic()
        status = self.rich.status(title) if self.live else contextlib.nullcontext()

        def count(documents: int, tokens: int) -> None:
            nonlocal last
            now = time.monotonic()
            rate = documents / max(now - start, 1e-3)
            text = f"{title}: {documents:,} documents, {tokens:,} tokens, {rate:,.0f} documents/s"
            if isinstance(status, rich.status.Status):
                status.update(text)
            elif now - last >= PLAIN_INTERVAL:
                last = now
                self.log(text)

        with status:
            yield count

    @contextmanager
    def progress(self, title: str, total: int, done: int = 0) -> Iterator[Line]:
        """A line that counts to `total`."""
        line = Line(self, title, total, done)
        try:
            yield line
        finally:
            line.stop()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
