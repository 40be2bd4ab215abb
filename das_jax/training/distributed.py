"""Several processes, one run: how they find each other and agree.

Every process runs the same program, and a host is a process here. What leaves the devices (files,
sentences, decisions) is the first host's, and what it decides or cannot do is told to the others. One
that ends alone takes the others down within `GONE_AFTER` seconds.
"""

import collections
import json
import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from das_jax.errors import UserError
from das_jax.training.sharding import Sharding

T = TypeVar("T")

GONE_AFTER = 60
"""Seconds after which the others give a host up that died, or that ended and left them behind."""

ADDRESS, PROCESSES, PROCESS = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"


def connect(environment: Mapping[str, str] = os.environ) -> None:
    """Joins the run's other processes, if the environment says that there are any.

    1. `JAX_COORDINATOR_ADDRESS` (HOST:PORT of the first process), `JAX_NUM_PROCESSES` and
       `JAX_PROCESS_ID` say it all.
    2. `JAX_NUM_PROCESSES=auto`, or several hosts in `TPU_WORKER_HOSTNAMES`: JAX asks the TPU's metadata,
       Slurm or Open MPI.

    Call it before anything uses a device.

    Raises:
      UserError: the variables are incomplete, or the others cannot be reached.
    """
    arguments = _arguments(environment)
    if arguments is None:
        return
    # Its handler of SIGTERM would take the place of ours; the loop agrees on when to stop.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            **arguments, heartbeat_timeout_seconds=GONE_AFTER, shutdown_timeout_seconds=GONE_AFTER
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the other processes of this run cannot be reached ({str(error).splitlines()[0]}); start "
            f"it on every host, with {ADDRESS}, {PROCESSES} and {PROCESS} if JAX does not find them"
        ) from error


def _arguments(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """What `jax.distributed.initialize` is given; None for a process on its own."""
    if environment.get(PROCESSES) == "auto":
        return {}
    if ADDRESS not in environment:
        several = "," in environment.get("TPU_WORKER_HOSTNAMES", "")
        return {} if several else None
    numbers = [environment.get(name, "") for name in (PROCESSES, PROCESS)]
    if not all(number.isdecimal() for number in numbers) or int(numbers[1]) >= int(numbers[0]):
        raise UserError(
            f"{ADDRESS} is set, so {PROCESSES} must be a number, here {numbers[0]!r}, and {PROCESS} one "
            f"below it, here {numbers[1]!r}"
        )
    return {
        "coordinator_address": environment[ADDRESS],
        "num_processes": int(numbers[0]),
        "process_id": int(numbers[1]),
    }


def on_first_host(function: Callable[[], T]) -> T:
    """What a function returns on the first host, where alone it is called, on every host.

    Args:
      function: returns what JSON can hold.

    Raises:
      UserError: the function raised it.
    """
    if jax.process_count() == 1:
        return function()
    result, error = None, None
    if jax.process_index() == 0:
        try:
            result = function()
        except UserError as raised:
            error = str(raised)
    result, error = _told([result, error])
    if error is not None:
        raise UserError(error)
    return result


def _told(value: Any) -> Any:
    """The first host's value, on every host."""
    sent = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(sent.size)))
    if jax.process_index() != 0:
        sent = np.zeros(size, np.uint8)
    return json.loads(multihost_utils.broadcast_one_to_all(sent).tobytes())


def on_every_host(true: bool) -> bool:
    """Whether it is true on all hosts; each of them gets the same answer."""
    if jax.process_count() == 1:
        return true
    return bool(multihost_utils.process_allgather(np.array(true)).all())


def check_same(what: str, value: str) -> None:
    """Raises UserError, on every host, unless all have the same value."""
    if not on_every_host(value == on_first_host(lambda: value)):
        raise UserError(f"{what} is not the same on every host; make it so")


class Agreement:
    """Tells all hosts at the same step that one of them was asked to stop.

    The flags are gathered on the devices and read some steps later, so no step waits for them.
    """

    def __init__(self, sharding: Sharding, delay: int) -> None:
        self._sharding, self._delay = sharding, delay
        self._asked: collections.deque[jax.Array] = collections.deque()
        self._any = jax.jit(jnp.any, out_shardings=sharding.replicated)

    def reached(self, requested: bool, last: bool) -> bool:
        """Whether to stop after this step; `last` if there is no other to wait for."""
        if jax.process_count() == 1:
            return requested
        own = np.full(jax.local_device_count(), requested)
        flags = jax.make_array_from_process_local_data(self._sharding.by_example, own)
        self._asked.append(self._any(flags))
        known = len(self._asked) - (0 if last else self._delay)
        return any(bool(self._asked.popleft()) for _ in range(known))
