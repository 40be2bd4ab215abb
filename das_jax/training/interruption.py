"""SIGTERM and Ctrl-C: a preempted run saves first and ends well."""

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

from das_jax import stopping
from das_jax.stopping import Interrupted as Interrupted

GRACE, START_GRACE = 10.0, 1.0
"""Seconds after a signal in which a safe place has to be reached, or the process is ended where it is; the
second while there was none yet."""

AGAIN = 1.0
"""Seconds after which another Ctrl-C is a person's second, and not the first one told twice."""


class Interruption:
    """Turns SIGTERM and SIGINT into a request, which is looked at in safe places.

    A handler that raised would raise anywhere: in a destructor, where Python drops the exception, or
    in the middle of a library's work. So it only asks, and `das_jax.stopping.check` raises. What reaches
    no such place in time, like a compiler at work for minutes, is ended where it is: all that is
    written is whole or absent, whenever a process ends.

    Attributes:
      requested: the signal that came first, or None.
    """

    def __init__(self) -> None:
        self.requested: signal.Signals | None = None
        self._deferred = False
        self._since = 0.0
        self._ending = False
        self._last_words: Callable[[], None] = lambda: None

    @contextmanager
    def watched(self, to_the_end: bool = False) -> Iterator[None]:
        """Handles the signals inside, and gives them back after.

        Args:
          to_the_end: they are not given back, as the process is about to end.
        """
        global _watching
        numbers = (signal.SIGTERM, signal.SIGINT)
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        # The kernel's side of a handler writes there at once, whatever the main thread is at.
        old_wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        old = {number: signal.signal(number, self._handle) for number in numbers}
        watch = threading.Thread(target=self._watch, args=(reader,), daemon=True)
        watch.start()
        before, _watching = _watching, old
        try:
            yield
        finally:
            if not to_the_end:
                for number, handler in old.items():
                    signal.signal(number, handler)
                signal.set_wakeup_fd(old_wakeup)
                os.close(writer)
                watch.join()
                os.close(reader)
                _watching = before
                stopping.ask(False)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, a signal only sets `requested`; one that nobody looked at takes effect at the end."""
        self._deferred = True
        stopping.ask(False)
        try:
            yield
        finally:
            self._deferred, self._since = False, time.monotonic()
            stopping.ask(self.requested is not None)
        stopping.check()

    @contextmanager
    def finishing(self, work: Callable[[], None]) -> Iterator[None]:
        """Inside, a process that is ended where it is does this first: it waits for what is being saved."""
        self._last_words = work
        try:
            yield
        finally:
            self._last_words = lambda: None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._request(signal.Signals(number))

    def _request(self, number: signal.Signals) -> None:
        if self.requested is None:
            self.requested, self._since = number, time.monotonic()
        stopping.ask(not self._deferred)

    def _watch(self, reader: int) -> None:
        """Ends the process if no safe place is reached in time, or at a second Ctrl-C."""
        first = None
        while True:
            timeout = None if self.requested is None else 0.1
            if select.select([reader], [], [], timeout)[0]:
                told = os.read(reader, 1)
                if not told:
                    return
                if told[0] not in (signal.SIGTERM, signal.SIGINT):
                    continue
                self._request(signal.Signals(told[0]))
                now = time.monotonic()
                if first is not None and told[0] == signal.SIGINT and now - first >= AGAIN:
                    self._end()
                first = now if first is None else first
            grace = GRACE if stopping.begun() else START_GRACE
            overdue = self.requested and time.monotonic() - self._since >= grace
            if overdue and not self._deferred and not self._ending:
                self._ending = True
                # In a thread of its own, so that a second Ctrl-C is heard.
                threading.Thread(target=self._end_in_order, daemon=True).start()

    def _end_in_order(self) -> None:
        with contextlib.suppress(Exception):
            self._last_words()
        self._end()

    def _end(self) -> None:
        sentence = (
            "stopped at once; what is saved is kept, and the same command goes on from there\n"
        )
        with contextlib.suppress(OSError, ValueError):
            # A terminal's cursor may be hidden; a pipe that nobody reads must not be waited for.
            text = f"\x1b[?25h\n{sentence}" if os.isatty(1) else sentence
            if select.select([], [1], [], 0)[1]:
                os.write(1, text.encode())
        os._exit(status(self.requested))


def status(requested: signal.Signals | None) -> int:
    """The exit status of a command that was asked to stop: 130 after Ctrl-C, 0 after SIGTERM."""
    return 130 if requested == signal.SIGINT else 0


_watching: Mapping[signal.Signals, Any] = {}


def _forget() -> None:
    """A forked worker is ended by a signal as it would be without us, and tells us nothing of it."""
    if _watching:
        signal.set_wakeup_fd(-1)
        for number, handler in _watching.items():
            signal.signal(number, handler)
        stopping.ask(False)


os.register_at_fork(after_in_child=_forget)
