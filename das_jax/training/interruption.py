"""SIGTERM and Ctrl-C: a preempted run saves first and ends well."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(BaseException):
    """Somebody asked the run to stop; like KeyboardInterrupt, no error, so nothing that handles errors
    catches it.
    """


class Interruption:
    """Turns SIGTERM and SIGINT into `Interrupted`: at once, or when the training loop has saved."""

    def __init__(self) -> None:
        self.requested = False
        self._deferred = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        if not self._deferred:
            raise Interrupted

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Handles the signals inside, and gives them back after."""
        old = {
            number: signal.signal(number, self._handle)
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, a signal only sets `requested`."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
