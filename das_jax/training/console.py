"""What a person sees while a run goes on: one progress line per stage, or plain lines without a terminal."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar, cast

import jax
import rich.console
import rich.status
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from das_jax import stopping

T = TypeVar("T")

PIPE_WIDTH = 240
"""Columns of a table in a file or pipe, where nobody wants it wrapped."""

PLAIN_INTERVAL = 30.0
"""Seconds between two plain progress lines."""


class Line:
    """One line of progress: a bar, or now and then a plain line.

    Without a terminal, what is done before the first plain line is due says nothing, unless it has a
    note to end with.
    """

    def __init__(
        self, console: "Console", title: str, total: int, done: int, transient: bool
    ) -> None:
        self._console, self._title, self._total = console, title, total
        self._done, self._note = done, ""
        self._start = self._last = time.monotonic()
        # The first item may have to be compiled, so the time left is judged by those after it.
        self._judged_from: tuple[int, float] | None = None
        self._bar: Progress | None = None
        if console.live:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeRemainingColumn(elapsed_when_finished=True),
                console=console.rich,
                transient=transient,
            )
            self._bar.add_task(title, total=total, completed=done, note="")
            self._bar.start()

    def update(self, done: int, note: str | None = None) -> None:
        """Shows that `done` of the total are done; the note stays until there is another.

        Raises:
          Interrupted: somebody asked the command to stop.
        """
        stopping.check()
        if self._judged_from is None and done > self._done:
            self._judged_from = done, time.monotonic()
        self._done = done
        self._note = self._note if note is None else note
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, note=self._note)
        elif time.monotonic() - self._last >= PLAIN_INTERVAL and done < self._total:
            self._last = time.monotonic()
            self._print(self._time_left())

    def counting(self, items: Iterable[T]) -> Iterator[T]:
        """Passes items through and counts each as done when the next is asked for."""
        for item in items:
            yield item
            self.update(self._done + 1)

    def stop(self) -> None:
        """Nothing more will be shown."""
        if self._bar is not None:
            self._bar.stop()
        elif self._note and self._done >= self._total:
            self._print(f"in {clock(time.monotonic() - self._start)}")

    def _time_left(self) -> str:
        if self._judged_from is None or self._judged_from[0] == self._done:
            return ""
        done, start = self._judged_from
        per_item = (time.monotonic() - start) / (self._done - done)
        return f"{clock(per_item * (self._total - self._done))} left"

    def _print(self, time_note: str) -> None:
        parts = f"{self._done}/{self._total}", self._note, time_note
        self._console.log(f"{self._title}: {', '.join(filter(None, parts))}")


class Console:
    """Prints for the first host only; `quiet`, or an output that is no terminal, gives plain lines.

    Attributes:
      rich: what it prints with.
      live: whether it shows bars.
      awaits_first_step: whether this process has trained no step yet.
    """

    def __init__(self, quiet: bool = False) -> None:
        stopping.check()  # What a verb imports took seconds.
        self.awaits_first_step = True
        first_host = jax.process_index() == 0
        self.rich = screen(quiet=not first_host)
        self.rich.file = cast(IO[str], _Unfailing(self.rich.file))
        self.live = self.rich.is_terminal and not quiet and first_host

    def log(self, sentence: str) -> None:
        """Prints a line above the progress."""
        self.rich.print(sentence, markup=False)

    def first_step(self, stage: str, seconds: float) -> None:
        """Says that the first step of this process is done, so many seconds after the command was given."""
        self.awaits_first_step = False
        self.log(f"{stage}: first step done {seconds:.0f} seconds after the command was given")

    @contextmanager
    def counter(self, title: str) -> Iterator[Callable[[int, int], None]]:
        """Yields a function that shows how many documents and tokens are done, of a number nobody knows.

        Raises:
          Interrupted: somebody asked the command to stop; the function raises it too.
        """
        stopping.check()
        start = last = time.monotonic()
        status = self.rich.status(title) if self.live else contextlib.nullcontext()

        def count(documents: int, tokens: int) -> None:
            nonlocal last
            stopping.check()
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
    def progress(
        self, title: str, total: int, done: int = 0, transient: bool = False
    ) -> Iterator[Line]:
        """A line that counts to `total`; a transient bar vanishes at its end.

        Raises:
          Interrupted: somebody asked the command to stop.
        """
        stopping.check()
        line = Line(self, title, total, done, transient)
        try:
            yield line
        finally:
            line.stop()


class _Unfailing:
    """A stream for what only reports: where it cannot be written, work goes on without it."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            return self._go_on_without(error)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._go_on_without(error)

    def _go_on_without(self, error: OSError) -> int:
        """Everything from now on, what is buffered too, goes nowhere; a reader who left need not be told."""
        if not isinstance(error, BrokenPipeError):
            sentence = (
                f"warning: the output cannot be written ({error.strerror}); work goes on without it"
            )
            with contextlib.suppress(OSError):
                print(sentence, file=sys.stderr, flush=True)
        os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
        return 0


def screen(quiet: bool = False) -> rich.console.Console:
    """Standard output; lines are never wrapped, and tables only as wide as a terminal if there is one."""
    stopping.check()
    console = rich.console.Console(soft_wrap=True, highlight=False, quiet=quiet)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    return console


def process_seconds() -> float:
    """Seconds since this process was started, by the kernel's account: proc(5), field starttime."""
    # The second field, the name, is in brackets and may have spaces.
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started


def clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
