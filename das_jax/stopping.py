"""A request to stop, and the safe places where it is looked at.

A signal only asks. What works for long calls `check` between two of its parts: batches, files, cells,
stages. `das_jax.training.interruption` handles the signals.
"""

import threading

_asked = _begun = False


class Interrupted(BaseException):
    """Somebody asked the command to stop; the text says what became of its work.

    Like KeyboardInterrupt it is no error, so nothing that handles errors catches it.
    """


def ask(stop: bool) -> None:
    """Lets `check` raise from now on, or no longer."""
    global _asked
    _asked = stop


def begun() -> bool:
    """Whether a safe place was reached yet: until then a command only imports what it needs."""
    return _begun


def check() -> None:
    """A safe place: raises Interrupted if somebody asked the command to stop.

    Threads beside the main one go on: who waits for them would wait for ever.
    """
    global _begun
    _begun = True
    if _asked and threading.current_thread() is threading.main_thread():
        raise Interrupted(
            "stopped; what is finished is kept, and the same command goes on from there"
        )
