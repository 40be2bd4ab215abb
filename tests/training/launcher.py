"""Starts the command line in processes of its own, each struck by a signal at a given moment or not.

Reads a JSON object a line: {"arguments": [...], "at": "module:Class.function", "number": 2, "when":
"after", "name": "SIGKILL"} strikes when the second call of that function has returned (`before`: when
it is about to be made); without `at` nothing happens. With "nobody_reads" the standard output is a pipe
whose other end is closed. Answers with a line of [exit status, output, errors, seconds from the blow to
the end]. A process is forked when everything is imported, as importing takes longer than all the rest.

With "hosts" there are that many processes of one run, with "devices" each, and as many lines in one
list; "struck" is the host that the signal strikes. In the directory "rows" every host writes down the
positions of the examples that it reads.
"""

import functools
import importlib
import json
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

import das_jax.comparing.compare
import das_jax.evaluation.importance_report
import das_jax.evaluation.report
import das_jax.training.export
import das_jax.training.measure_importance
import das_jax.training.pretrain  # noqa: F401
from das_jax import cli
from das_jax.data.batch import Batch
from das_jax.training import distributed
from das_jax.training.sharding import Sharding

Ended = tuple[int, str, str, float]


def start(
    arguments: Sequence[str],
    hosts: int | None = None,
    devices: int = 1,
    struck: int = 0,
    rows: str | None = None,
    **blow: Any,
) -> Ended | list[Ended]:
    if hosts is None:
        return forked(lambda pipe: child(arguments, pipe, **blow))()
    address = f"localhost:{free_port()}"

    def host(number: int) -> Callable[[int], int]:
        def run(pipe: int) -> int:
            jax.config.update("jax_num_cpu_devices", devices)
            distributed.GONE_AFTER = 10
            if hosts > 1:
                names = distributed.ADDRESS, distributed.PROCESSES, distributed.PROCESS
                os.environ.update(zip(names, (address, str(hosts), str(number)), strict=True))
            if rows is not None:
                write_down_rows(Path(rows) / str(number))
            return child(arguments, pipe, **(blow if number == struck else {}))

        return run

    return [wait() for wait in [forked(host(number)) for number in range(hosts)]]


def forked(run: Callable[[int], int]) -> Callable[[], Ended]:
    """Runs a function in a process of its own; what is returned waits for its end."""
    output, errors = tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+")  # noqa: SIM115
    blow_read, blow_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(output.fileno(), 1)
        os.dup2(errors.fileno(), 2)
        sys.exit(run(blow_write))
    os.close(blow_write)

    def wait() -> Ended:
        _, status = os.waitpid(pid, 0)
        ended = time.time()
        with os.fdopen(blow_read) as blow, output, errors:
            struck = blow.read()
            output.seek(0)
            errors.seek(0)
            seconds = ended - float(struck) if struck else 0.0
            return os.waitstatus_to_exitcode(status), output.read(), errors.read(), seconds

    return wait


def child(
    arguments: Sequence[str],
    blow: int,
    at: str | None = None,
    number: int = 1,
    when: str = "before",
    name: str = "SIGKILL",
    nobody_reads: bool = False,
) -> int:
    if nobody_reads:
        os.dup2(closed_pipe(), 1)
    if at is not None:
        strike(at, number, when, name, blow)
    return cli.main(arguments)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def write_down_rows(path: Path) -> None:
    shard = Sharding.shard_batch

    @functools.wraps(shard)
    def written(sharding: Sharding, batch: Batch, micro_batches: int = 1) -> Batch:
        with path.open("a") as file:
            file.write(" ".join(map(str, batch.index)) + "\n")
        return shard(sharding, batch, micro_batches)

    Sharding.shard_batch = written  # type: ignore[method-assign]


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
