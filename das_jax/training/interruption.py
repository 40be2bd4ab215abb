"""SIGTERM and Ctrl-C: a preempted run saves first and ends well."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(BaseException):
    """Somebody asked the command to stop; the text says what became of its work.

    Like KeyboardInterrupt it is no error, so nothing that handles errors catches it.
    """


class Interruption:
    """Turns SIGTERM and SIGINT into `Interrupted`: at once, or when the training loop has saved.

    Attributes:
      requested: the signal that came, or None.
    """

    def __init__(self) -> None:
        self.requested: signal.Signals | None = None
        self._deferred = False

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Handles the signals inside, and gives them back after."""
        numbers = (signal.SIGTERM, signal.SIGINT)
        old = {number: signal.signal(number, self._handle) for number in numbers}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, a signal only sets `requested`; one that nobody looked at takes effect at the end."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        if self.requested:
            self._stop()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = signal.Signals(number)
        if not self._deferred:
            self._stop()

    def _stop(self) -> None:
        raise Interrupted(
            "stopped; what is finished is kept, and the same command goes on from there"
        )
