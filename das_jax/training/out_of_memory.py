"""Out of memory: in which program, and the largest batch that fits; `memory_advice.py` says what to do."""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax

from das_jax.data.batch import Batch
from das_jax.errors import UserError
from das_jax.training.device_memory import bytes_in_use, bytes_on_a_device, program_bytes

COMPILATIONS = 6
"""At most, to find the batch that fits; each may take a minute."""

SURE = 0.9
"""Of what was not there, although it should have been: so much is taken to be there."""

EVEN = 8
"""Batches of a multiple of so many examples on a device are tried before others."""


def is_exhausted(error: BaseException) -> bool:
    """Whether JAX says that a device has no memory left, at compile time or when a program runs."""
    return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)


@dataclass(frozen=True)
class Work:
    """A program that is run on one batch after the other.

    Attributes:
      name: what it is.
      batch_keys: the key of its batch size, or the beginnings of the keys that it may be, which end in a dot.
      settings: the keys of others that save memory.
      rows: examples of a batch, over all devices.
      unit: a batch is a multiple of it.
      resident: those of its arguments, or their shapes and places, that are on the devices before it.
      lower: gives the program for a number of examples.
    """

    name: str
    batch_keys: tuple[str, ...]
    settings: tuple[str, ...]
    rows: int
    unit: int
    resident: Any
    lower: Callable[[int], jax.stages.Lowered]


class OutOfMemory(UserError):
    """A program did not find the memory that it needs.

    Attributes:
      work: the program.
      others: bytes that a device held besides the program's arguments.
    """

    def __init__(self, work: Work, others: int) -> None:
        super().__init__(
            f"the devices ran out of memory in {work.name}, with {work.rows:,} examples at a time"
        )
        self.work, self.others = work, others


@contextlib.contextmanager
def watching(work: Work) -> Iterator[None]:
    """Raises OutOfMemory where the devices have no memory for a work, be it said only when its results are
    read.
    """
    held = bytes_in_use(jax.local_devices())
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not is_exhausted(error):
            raise
        raise OutOfMemory(work, max(0, held - bytes_on_a_device(work.resident))) from error


def on_batches(
    name: str,
    batch_keys: tuple[str, ...],
    settings: tuple[str, ...],
    program: jax.stages.Wrapped,
    *arguments: Any,
) -> Work:
    """The work of a jitted function, one of whose arguments is a batch; for the others, see `Work`."""
    # What is donated is soon gone; its shapes stay.
    shapes = jax.tree.map(_shape, arguments)
    batch = next(each for each in shapes if isinstance(each, Batch))
    axis = batch.index.ndim - 1  # Micro-batches have an axis of their own before it.
    rows, devices = math.prod(batch.index.shape), len(batch.index.sharding.device_set)

    def lower(fewer: int) -> jax.stages.Lowered:
        def resized(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            shape = list(x.shape)
            # Kept rows beside the batch are a share or a multiple of it.
            shape[axis] = -(-shape[axis] * fewer // (rows * devices)) * devices
            return jax.ShapeDtypeStruct(tuple(shape), x.dtype, sharding=x.sharding)

        changed = (jax.tree.map(resized, x) if isinstance(x, Batch) else x for x in shapes)
        return program.lower(*changed)

    unit = devices * math.prod(batch.index.shape[:axis])
    return Work(name, batch_keys, settings, rows, unit, shapes, lower)


def _shape(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None))


def largest_that_fits(work: Work, room: int) -> tuple[int | None, int]:
    """The bytes that a work needs on a device, None if they are more than its compiler can say, and the most
    examples that fit; 0 if none do.

    Args:
      work: the program, which does not fit.
      room: the bytes that it may have on a device, its arguments included.

    Raises:
      UserError: the work refuses such batches.
    """
    needs, rows, unit = _Needs(work), work.rows, EVEN * work.unit
    needed = needs.of(rows)
    if needed is not None and needed <= room:  # And yet it failed: there is less than it seems.
        room = int(SURE * needed)
    if rows % unit == 0:
        if fits := _search(needs, rows, unit, room):
            return needed, fits
        rows = unit
    return needed, _search(needs, rows, work.unit, room)


class _Needs:
    """What programs need, each compiled once."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self.known: dict[int, int | None] = {}

    def of(self, rows: int) -> int | None:
        """Bytes on a device, with so many examples; None if the compiler itself runs out of memory."""
        if rows not in self.known:
            try:
                self.known[rows] = program_bytes(self._work.lower(rows).compile())
            except jax.errors.JaxRuntimeError as error:
                if not is_exhausted(error):
                    raise
                self.known[rows] = None
        return self.known[rows]

    def fit(self, rows: int, room: int) -> bool:
        needed = self.of(rows)
        return needed is not None and needed <= room

    def guess(self, room: int) -> float | None:
        """Where the line through the two points that are nearest to the room meets it; what a program needs
        grows almost linearly with its batch.
        """
        found = [(rows, needed) for rows, needed in self.known.items() if needed is not None]
        near = sorted(found, key=lambda point: abs(point[1] - room))[:2]
        if not near:
            return None
        (rows, needed), (other_rows, other_needed) = near[0], (near[1] if near[1:] else (0, 0))
        if needed == other_needed:
            return None
        return rows + (room - needed) * (rows - other_rows) / (needed - other_needed)


def _search(needs: _Needs, rows: int, unit: int, room: int) -> int:
    """The most examples that were compiled and fit, a multiple of the unit and less than the rows."""
    needs.of(rows)
    low, high = 0, -(-rows // unit)
    for _ in range(COMPILATIONS - 1):
        if high - low <= 1:
            break
        guess = needs.guess(room)
        units = (low + high) // 2 if guess is None else math.floor(guess / unit)
        if units <= low and low:  # The next would be too many.
            break
        units = min(max(units, low + 1), high - 1)
        low, high = (units, high) if needs.fit(units * unit, room) else (low, units)
    return low * unit
