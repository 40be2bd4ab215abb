"""Starts the command line in processes of its own, each struck by a signal at a given moment or not.

Reads a JSON object a line: {"arguments": [...], "at": "module:Class.function", "number": 2, "when":
"after", "name": "SIGKILL"} strikes when the second call of that function has returned (`before`: when
it is about to be made); without `at` nothing happens. With "nobody_reads" the standard output is a pipe
whose other end is closed. Answers with a line of [exit status, output, errors, seconds from the blow to
the end]. A process is forked when everything is imported, as importing takes longer than all the rest.
"""

import functools
import importlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import das_jax.evaluation.importance_report
import das_jax.evaluation.report
import das_jax.training.export
import das_jax.training.measure
import das_jax.training.pretrain  # noqa: F401
from das_jax import cli


def start(
    arguments: Sequence[str],
    at: str | None = None,
    number: int = 1,
    when: str = "before",
    name: str = "SIGKILL",
    nobody_reads: bool = False,
) -> tuple[int, str, str, float]:
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        blow_read, blow_write = os.pipe()
        child = os.fork()
        if child == 0:
            os.dup2(closed_pipe() if nobody_reads else output.fileno(), 1)
            os.dup2(errors.fileno(), 2)
            if at is not None:
                strike(at, number, when, name, blow_write)
            sys.exit(cli.main(arguments))
        os.close(blow_write)
        _, status = os.waitpid(child, 0)
        ended = time.time()
        with os.fdopen(blow_read) as blow:
            struck = blow.read()
        output.seek(0)
        errors.seek(0)
        seconds = ended - float(struck) if struck else 0.0
        return os.waitstatus_to_exitcode(status), output.read(), errors.read(), seconds


def closed_pipe() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def strike(at: str, number: int, when: str, name: str, blow: int) -> None:
    """Makes the function send the signal to this process."""
    module, _, path = at.partition(":")
    *owners, attribute = path.split(".")
    owner = functools.reduce(getattr, owners, importlib.import_module(module))
    function = getattr(owner, attribute)
    calls = 0

    @functools.wraps(function)
    def struck(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number and when == "before":
            send()
        result = function(*args, **kwargs)
        if calls == number and when == "after":
            send()
        return result

    def send() -> None:
        os.write(blow, str(time.time()).encode())
        os.kill(os.getpid(), getattr(signal, name))

    setattr(owner, attribute, struck)


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(start(**json.loads(line))), flush=True)
