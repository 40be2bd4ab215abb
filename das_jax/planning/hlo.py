"""The text of a program as the TPU compiler left it: scheduled, fused, with layouts and memory spaces."""

import functools
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

BYTES = {
    **dict.fromkeys(("s4", "u4"), 0.5),
    **dict.fromkeys(("pred", "s8", "u8", "f8e4m3fn", "f8e5m2"), 1),
    **dict.fromkeys(("bf16", "f16", "s16", "u16"), 2),
    **dict.fromkeys(("f32", "s32", "u32"), 4),
    **dict.fromkeys(("f64", "s64", "u64", "c64"), 8),
}
"""Bytes of one element."""

_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^{}]*)\})?")
_SPACE = re.compile(r"S\((\d+)\)")
_HEADER = re.compile(r"\s*(ENTRY\s+)?%?([\w.\-<>]+)\s*\(.*\)\s*->\s*.*\{\s*$")
_INSTRUCTION = re.compile(r"\s*(ROOT\s+)?%([\w.\-<>]+)\s*=\s*(.*)$")
_NAME = re.compile(r"%([\w.\-<>]+)")


@dataclass(frozen=True)
class Array:
    """An array of an instruction's shape.

    Attributes:
      dtype: such as `bf16`.
      dims: its sizes.
      in_hbm: false if it lives in the memory on the chip.
    """

    dtype: str
    dims: tuple[int, ...]
    in_hbm: bool

    @property
    def elements(self) -> int:
        return math.prod(self.dims)

    @property
    def bytes(self) -> float:
        return BYTES[self.dtype] * self.elements


@dataclass(frozen=True, eq=False)
class Instruction:
    """One line of a computation.

    Attributes:
      name: unique in its computation.
      shape: the text of its result's shape.
      op: such as `fusion`.
      operands: names of instructions of the same computation.
      literal: what stands between the parentheses: a constant's value, a parameter's number.
      attributes: all that follows.
      is_root: whether it is its computation's result.
    """

    name: str
    shape: str
    op: str
    operands: tuple[str, ...]
    literal: str
    attributes: str
    is_root: bool

    @functools.cached_property
    def arrays(self) -> tuple[Array, ...]:
        return tuple(_arrays(self.shape))

    @property
    def bytes(self) -> float:
        return sum(array.bytes for array in self.arrays)

    @property
    def hbm_bytes(self) -> float:
        return sum(array.bytes for array in self.arrays if array.in_hbm)

    @property
    def elements(self) -> int:
        return sum(array.elements for array in self.arrays)

    @functools.cached_property
    def called(self) -> tuple[str, ...]:
        """Names of the computations that it runs."""
        branches = re.search(r"branch_computations=\{([^}]*)\}", self.attributes)
        names = re.findall(r"(?:calls|to_apply|body|condition)=%?([\w.\-<>]+)", self.attributes)
        return (*names, *(_NAME.findall(branches[1]) if branches else ()))

    def attribute(self, pattern: str) -> str | None:
        """The first group of a pattern in the attributes."""
        found = re.search(pattern, self.attributes)
        return found[1] if found else None

    @property
    def source(self) -> str:
        """The path of module names that the instruction came from."""
        return self.attribute(r'op_name="([^"]*)"') or ""


Computation = dict[str, Instruction]


@dataclass(frozen=True)
class Module:
    """A program: computations of instructions in the order in which they run.

    Attributes:
      computations: by name.
      entry: the one that is run.
    """

    computations: dict[str, Computation]
    entry: str

    def instructions(self) -> Iterator[Instruction]:
        for computation in self.computations.values():
            yield from computation.values()

    def called(self, instruction: Instruction) -> Iterator[Computation]:
        for name in instruction.called:
            yield self.computations.get(name, {})

    def trips(self, loop: Instruction) -> int:
        """How often a loop runs: what the compiler knows, or what its condition compares with; else 1."""
        if known := loop.attribute(r'known_trip_count"?:\{"?n"?:"?(\d+)'):
            return int(known)
        condition = self.computations[loop.attribute(r"condition=%?([\w.\-<>]+)") or ""]
        constants = _constants(self, condition)
        return max(constants, default=1)


def root(computation: Computation) -> Instruction | None:
    """The result of a computation."""
    return next((i for i in computation.values() if i.is_root), None)


def operands(instruction: Instruction, computation: Computation) -> list[Instruction]:
    """The instructions that an instruction reads."""
    return [computation[name] for name in instruction.operands if name in computation]


def parse(lines: Iterable[str]) -> Module:
    """Reads a program's text."""
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in lines:
        if current is None:
            if header := _HEADER.match(line):
                current = computations[header[2]] = {}
                entry = header[2] if header[1] else entry
        elif re.match(r"\}\s*(,|$)", line):
            current = None
        elif instruction := _instruction(line):
            current[instruction.name] = instruction
    return Module(computations, entry)


def _instruction(line: str) -> Instruction | None:
    matched = _INSTRUCTION.match(line)
    if not matched:
        return None
    is_root, name, rest = matched.groups()
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.find(" ")
    shape, tail = rest[:end], rest[end:].lstrip()
    opening = tail.find("(")
    if end < 0 or opening < 0:
        return None
    closing = _closing(tail, opening)
    op, literal = tail[:opening], tail[opening + 1 : closing]
    names = () if op in ("constant", "parameter") else tuple(_NAME.findall(literal))
    return Instruction(name, shape, op, names, literal, tail[closing + 1 :], bool(is_root))


def _closing(text: str, opening: int) -> int:
    """Where the parenthesis at `opening` is closed."""
    depth = 0
    for found in re.compile(r"[()]").finditer(text, opening):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return found.start()
    return len(text) - 1


def _arrays(shape: str) -> Iterator[Array]:
    for dtype, dims, layout in _ARRAY.findall(shape):
        if dtype in BYTES:
            space = _SPACE.search(layout)
            in_hbm = space is None or space[1] == "0"
            yield Array(dtype, tuple(int(size) for size in dims.split(",") if size), in_hbm)


def _constants(module: Module, computation: Computation) -> list[int]:
    found = []
    for instruction in computation.values():
        if instruction.op == "constant" and instruction.literal.isdecimal():
            found.append(int(instruction.literal))
        for called in module.called(instruction):
            found += _constants(module, called)
    return found
