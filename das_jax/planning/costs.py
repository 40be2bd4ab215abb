"""What one instruction of a compiled program costs: products, bytes of HBM, vector operations, cycles."""

import functools
import math
from dataclasses import dataclass

from das_jax.planning.hlo import Computation, Instruction, Module, operands, root

FREE = {
    *("parameter", "constant", "iota", "tuple", "get-tuple-element", "bitcast", "domain"),
    *("partition-id", "replica-id", "after-all", "opt-barrier", "add-dependency", "async-update"),
}
"""Instructions that cost nothing."""

VECTOR = {
    **dict.fromkeys(("add", "subtract", "multiply", "maximum", "minimum", "negate", "abs"), 1),
    **dict.fromkeys(("sign", "floor", "ceil", "round-nearest-even", "clamp", "convert"), 1),
    **dict.fromkeys(("and", "or", "xor", "not", "compare", "select", "is-finite"), 1),
    **dict.fromkeys(("shift-left", "shift-right-logical", "shift-right-arithmetic"), 1),
    **dict.fromkeys(("reduce", "reduce-window"), 1),
    **dict.fromkeys(("exponential", "rsqrt"), 4),
    **dict.fromkeys(("sqrt", "divide", "rng-bit-generator"), 6),
    **dict.fromkeys(("log", "logistic"), 8),
    **dict.fromkeys(("tanh", "exponential-minus-one", "log-plus-one"), 10),
    "power": 20,
    **dict.fromkeys(("sine", "cosine"), 30),
    "erf": 45,
}
"""Vector operations for one element."""

OPS_PER_EXPONENTIAL = 32
"""Vector operations of other kernels for every score, counted in the source of those of `flash` with dropout:
most of them are for the softmax and its hash."""

KERNEL_OPS = {
    "forward_kernel": (16, 2300),
    "backward_kernel": (34, 2500),
    "flash_context_kernel": (19, 0),
    "flash_query_kernel": (16, 0),
    "flash_key_kernel": (20, 0),
}
"""Those of `fused`, and of `flash` without dropout: for every score, padding included, and for all scores of
a query, times its keys. As many as take the cycles of the compiler's last schedule for a v5e: to 12 % from
128 to 1,024 tokens, and of `flash` for 4,096, causal, with heads of 64."""

SLICES = ("dynamic-slice", "slice", "gather")
SMALL = 1e5
"""Bytes below which it does not matter what part of an operand is read."""


@dataclass(frozen=True)
class Cost:
    """Of one instruction, on one device.

    Attributes:
      flops: of matrix products.
      hbm_bytes: read and written.
      vector_ops: elementwise, weighted by what each needs.
      cycles: the compiler's own estimate; 0 if it gives none.
    """

    flops: float
    hbm_bytes: float
    vector_ops: float
    cycles: int


class Costs:
    """The costs of a program's instructions."""

    def __init__(self, module: Module) -> None:
        self._module = module
        self.work = functools.cache(self._work)

    def of(self, instruction: Instruction, computation: Computation) -> Cost:
        """The cost of one execution; loops, calls and collectives are not its business."""
        cycles = int(instruction.attribute(r'estimated_cycles":"?(\d+)') or 0)
        if instruction.op == "fusion":
            flops, vector_ops = self.work(instruction.called[0])
            return Cost(flops, self._fusion_bytes(instruction, computation), vector_ops, cycles)
        flops = matmul_flops(instruction, computation)
        vector_ops = VECTOR.get(instruction.op, 0) * instruction.elements
        hbm_bytes = _plain_bytes(instruction, operands(instruction, computation))
        if instruction.op == "custom-call":
            if "tpu_custom_call" not in instruction.attributes:
                return Cost(0, 0, 0, 0)  # AllocateBuffer, Sharding and the like.
            flops, exponentials = (
                float(instruction.attribute(rf'"cost_estimate":{{[^}}]*"{name}":"?(\d+)') or 0)
                for name in ("flops", "transcendentals")
            )
            each, once = KERNEL_OPS.get(
                instruction.name.partition(".")[0], (OPS_PER_EXPONENTIAL, 0)
            )
            vector_ops = (each + once / instruction.arrays[0].dims[-2]) * exponentials
        return Cost(flops, hbm_bytes, vector_ops, cycles)

    def _work(self, name: str) -> tuple[float, float]:
        """FLOPs and vector operations of a fused computation and of those inside it."""
        computation = self._module.computations.get(name, {})
        flops = vector_ops = 0.0
        for instruction in computation.values():
            flops += matmul_flops(instruction, computation)
            if instruction.op == "fusion":
                for called in instruction.called:
                    inner = self.work(called)
                    flops, vector_ops = flops + inner[0], vector_ops + inner[1]
            elif instruction.op == "reduce":
                vector_ops += sum(x.elements for x in operands(instruction, computation)[:1])
            else:
                vector_ops += VECTOR.get(instruction.op, 0) * instruction.elements
        return flops, vector_ops

    def _fusion_bytes(self, instruction: Instruction, computation: Computation) -> float:
        body = self._module.computations.get(instruction.called[0], {})
        total = self._written(instruction, body)
        for index, name in enumerate(instruction.operands):
            if name in computation:
                full = computation[name].hbm_bytes
                total += self._read(body, index, full) if full > SMALL else full
        return total

    def _read(self, body: Computation, index: int, full: float) -> float:
        """Bytes that a fused computation reads of an operand: a slice counts as a slice."""
        names = {i.name for i in body.values() if i.op == "parameter" and i.literal == str(index)}
        for instruction in body.values():  # An operand comes before what reads it.
            if instruction.op == "bitcast" and names.intersection(instruction.operands):
                names.add(instruction.name)
        total = 0.0
        for instruction in body.values():
            read = [k for k, name in enumerate(instruction.operands) if name in names]
            if not read or instruction.op == "bitcast":
                continue
            if instruction.op in SLICES and read[0] == 0:
                total += instruction.bytes
            elif instruction.op == "fusion":
                for inner in self._module.called(instruction):
                    total += sum(self._read(inner, k, full) for k in read)
            elif instruction.op != "dynamic-update-slice" or read[0] != 0 or 1 in read:
                return full
        return min(total, full)

    def _written(self, instruction: Instruction, body: Computation) -> float:
        """Bytes of the result; one updated in place counts its update only."""
        result = root(body)
        results = [result]
        if result is not None and result.op == "tuple":
            results = [body.get(name) for name in result.operands]
        if result is None or len(results) != len(instruction.arrays):
            return instruction.hbm_bytes
        total = 0.0
        for part, array in zip(results, instruction.arrays, strict=True):
            if array.in_hbm:
                update = self._update(part, body)
                total += array.bytes if update is None else update
        return total

    def _update(self, part: Instruction | None, body: Computation) -> float | None:
        while part is not None and part.op == "bitcast":
            part = body.get(part.operands[0])
        if part is not None and part.op == "fusion":
            body = self._module.computations.get(part.called[0], {})
            part = root(body)
        if part is None or part.op != "dynamic-update-slice" or part.operands[1] not in body:
            return None
        return body[part.operands[1]].bytes


def _plain_bytes(instruction: Instruction, read: list[Instruction]) -> float:
    """HBM bytes of an instruction outside any fusion."""
    if instruction.op in SLICES:
        return 2 * instruction.bytes
    if instruction.op == "dynamic-update-slice" and len(read) > 1:
        return 2 * read[1].bytes
    if instruction.op == "scatter" and len(read) > 2:
        return 3 * read[2].bytes
    return instruction.hbm_bytes + sum(operand.hbm_bytes for operand in read)


def matmul_flops(instruction: Instruction, computation: Computation) -> float:
    """FLOPs of a matrix product; 0 for everything else.

    The TPU compiler writes batched products as convolutions whose batch is a spatial dimension.
    """
    if instruction.op not in ("dot", "convolution"):
        return 0.0
    left, right = (x.arrays[0].dims for x in operands(instruction, computation)[:2])
    result = instruction.arrays[0].dims
    if instruction.op == "dot":
        axes = instruction.attribute(r"lhs_contracting_dims=\{([\d,]*)\}") or ""
        contracted = math.prod(left[int(axis)] for axis in axes.split(",") if axis)
        return 2.0 * math.prod(result) * contracted
    # Every contracted, left and right index is in two of the three shapes, a batch index in all three.
    product = math.prod(left) * math.prod(right) * math.prod(result)
    return 2.0 * math.sqrt(product / _batch(instruction, left, right, result))


def _batch(
    instruction: Instruction, left: tuple[int, ...], right: tuple[int, ...], result: tuple[int, ...]
) -> int:
    labels = [
        instruction.attribute(pattern) or ""
        for pattern in (r"dim_labels=(\w+)_", r"dim_labels=\w+_(\w+)->", r"dim_labels=\w+->(\w+)")
    ]
    batch = 1
    for digit in filter(str.isdigit, set.intersection(*map(set, labels))):
        shapes = zip((left, right, result), labels, strict=True)
        sizes = {dims[label.index(digit)] for dims, label in shapes}
        if len(sizes) == 1:
            batch *= sizes.pop()
    return batch
