"""Contenders in processes of their own, which answer one line of JSON with another."""

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any


class Worker:
    """A process that builds, says so, and then answers.

    Args:
      command: its command line; the process calls `Answers`.
      environment: what its environment has besides this one's.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        self._answers: queue.Queue[Any] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            self._answers.put(json.loads(line))
        self._answers.put(None)

    def answer(self, until: float | None = None) -> Any:
        """The next line; None if the process has ended, or says nothing until then (`time.monotonic`)."""
        try:
            left = None if until is None else max(0.0, until - time.monotonic())
            return self._answers.get(timeout=left)
        except queue.Empty:
            return None

    def ask(self, request: Any, until: float | None = None) -> Any:
        """The answer to a line."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return None
        return self.answer(until)

    def end(self) -> None:
        """Ends the process, whatever it is doing."""
        self.process.kill()
        self.process.wait()


class Answers:
    """The other end: what this process prints goes to standard error from now on, but for its answers."""

    def __init__(self) -> None:
        self._stream = os.fdopen(os.dup(1), "w")
        sys.stdout.flush()
        os.dup2(2, 1)

    def say(self, value: Any) -> None:
        self._stream.write(json.dumps(value) + "\n")
        self._stream.flush()

    def requests(self) -> Iterator[Any]:
        """The lines that it is asked, until there are no more."""
        for line in sys.stdin:
            yield json.loads(line)
