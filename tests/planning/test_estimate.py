"""Costs and times of small programs, in the compiler's notation, with known answers."""

import itertools
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest

from das_jax.hardware import CHIPS
from das_jax.planning import interconnect
from das_jax.planning.costs import Cost, Costs, matmul_flops
from das_jax.planning.estimate import COLLECTIVES, OTHER, Estimate, estimate, times
from das_jax.planning.hlo import Instruction, Module, parse

V5E = CHIPS["v5e"]

LOOP = """
%body (p: (s32[], f32[64,64])) -> (s32[], f32[64,64]) {
  %p = (s32[], f32[64,64]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[64,64]{1,0} get-tuple-element(%p), index=1
  %y = f32[64,64]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %t = (s32[], f32[64,64]{1,0}) tuple(%i, %y)
}
%condition (p: (s32[], f32[64,64])) -> pred[] {
  %p = (s32[], f32[64,64]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %n = s32[] constant(5)
  ROOT %less = pred[] compare(%i, %n), direction=LT
}
ENTRY %main (a: (s32[], f32[64,64])) -> (s32[], f32[64,64]) {
  %a = (s32[], f32[64,64]{1,0}) parameter(0)
  ROOT %w = (s32[], f32[64,64]{1,0}) while(%a), condition=%condition, body=%body%KNOWN%
}
"""

FUSION = """
%fused (stack: bf16[12,1024,1024], one: bf16[1,1024,1024]) -> bf16[12,1024,1024] {
  %stack = bf16[12,1024,1024]{2,1,0} parameter(0)
  %one = bf16[1,1024,1024]{2,1,0} parameter(1)
  %zero = s32[] constant(0)
  %twice = bf16[1,1024,1024]{2,1,0} add(%one, %one)
  ROOT %u = bf16[12,1024,1024]{2,1,0} dynamic-update-slice(%stack, %twice, %zero, %zero, %zero)
}
ENTRY %main (s: bf16[12,1024,1024], o: bf16[1,1024,1024]) -> bf16[12,1024,1024] {
  %s = bf16[12,1024,1024]{2,1,0} parameter(0)
  %o = bf16[1,1024,1024]{2,1,0:T(8,128)(2,1)S(1)} parameter(1)
  ROOT %f = bf16[12,1024,1024]{2,1,0} fusion(%s, %o), kind=kLoop, calls=%fused
}
"""

REDUCE = (
    "f32[1000,1000]{1,0} %OP%(%x), channel_id=7, replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%s"
)

ASYNC = """
ENTRY %main (x: f32[1000,1000], y: bf16[8192,8192]) -> f32[1000,1000] {
  %x = f32[1000,1000]{1,0} parameter(0)
  %y = bf16[8192,8192]{1,0} parameter(1)
  %s = f32[1000,1000]{1,0} all-reduce-start(%x), channel_id=7, replica_groups={{0,1,2,3,4,5,6,7}}
  %work = bf16[8192,8192]{1,0} dot(%y, %y), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %d = f32[1000,1000]{1,0} all-reduce-done(%s)
}
"""


def chips(*sides: int) -> list[Any]:
    return [SimpleNamespace(coords=place) for place in itertools.product(*map(range, sides))]


def program(text: str, **changes: str) -> Module:
    for name, value in changes.items():
        text = text.replace(f"%{name}%", value)
    return parse(text.splitlines())


def one(instructions: Iterable[Instruction], op: str) -> Instruction:
    return next(instruction for instruction in instructions if instruction.op == op)


@pytest.mark.parametrize(
    "known", ["", ', backend_config={"known_trip_count":{"n":"5"},"window_config":{}}']
)
def test_a_loop_costs_as_often_as_it_runs(known: str) -> None:
    found = estimate(program(LOOP, KNOWN=known), V5E, chips(1, 1))
    assert found.flops == 5 * 2 * 64**3
    assert found.hbm_bytes == 5 * 3 * 64 * 64 * 4
    assert found.parts == {OTHER: pytest.approx(found.busy)}


def test_an_update_in_place_writes_its_slice_and_reads_nothing_else() -> None:
    module = program(FUSION)
    entry = module.computations[module.entry]
    cost = Costs(module).of(entry["f"], entry)
    # The small operand lives on the chip, S(1), and is read from there.
    assert cost.hbm_bytes == 2 * 1024 * 1024
    assert cost.vector_ops == 1024 * 1024


def test_batched_product_as_the_tpu_compiler_writes_it() -> None:
    line = (
        "ENTRY %m (a: bf16[32,12,164,64], b: bf16[32,12,164,64]) -> bf16[32,12,164,164] {\n"
        "  %a = bf16[32,12,164,64]{3,2,1,0} parameter(0)\n"
        "  %b = bf16[32,12,164,64]{3,2,1,0} parameter(1)\n"
        "  ROOT %c = bf16[32,12,164,164]{3,2,1,0} convolution(%a, %b), window={size=32x12 stride=31x11},"
        " dim_labels=01bf_01oi->01bf\n}"
    )
    module = program(line)
    entry = module.computations[module.entry]
    assert matmul_flops(entry["c"], entry) == pytest.approx(2 * 32 * 12 * 164 * 164 * 64)


def test_all_reduce_is_exposed_and_counted_in_bytes() -> None:
    text = "ENTRY %m (x: f32[1000,1000]) -> f32[1000,1000] {\n  %x = f32[1000,1000]{1,0} parameter(0)\n"
    found = estimate(program(text + f"  ROOT %r = {REDUCE}\n}}", OP="all-reduce"), V5E, chips(2, 4))
    # Twice 7/8 of 4 MB over two links of 45 GB/s, and six hops.
    assert found.exposed == pytest.approx(2 * 4e6 * 7 / 8 / 90e9 + 6e-6)
    assert found.collective_bytes == {"all-reduce": 4e6}
    assert found.parts == {COLLECTIVES: found.exposed}


def test_a_collective_hides_behind_work_that_is_longer() -> None:
    found = estimate(program(ASYNC), V5E, chips(2, 4))
    places = [chip.coords for chip in chips(2, 4)]
    assert found.busy > interconnect.seconds(
        one(program(ASYNC).instructions(), "all-reduce-start"), V5E, places
    )
    assert found.exposed == 0
    assert found.collectives == {"all-reduce": 1}


BOXES = [
    (x + i, y + j) for x, y, i, j in itertools.product((0, 2, 4, 6), (0, 4), (0, 1), (0, 1, 2, 3))
]
ROWS = [*itertools.product(range(8), range(8))]
"""64 chips: one box of 2x4 after the other, or one row."""


@pytest.mark.parametrize(
    ("groups", "who", "order", "bandwidth", "hops"),
    [
        # A box has links along both of its sides, a row along one.
        ("{{0,1,2,3,4,5,6,7},{8,9,10,11,12,13,14,15}}", "in groups of 8", BOXES, 2, 6),
        ("[8,8]<=[64]", "in groups of 8", BOXES, 2, 6),
        ("mesh['data'=8,'parameters'=8] {'parameters'}", "in groups of 8", ROWS, 1, 8),
        # From box to box they share links with those in between: two along one side, four along the other.
        ("[8,8]<=[8,8]T(1,0)", "across 8 groups", BOXES, 1 / 2 + 1 / 4, 16),
        ("mesh['data'=8,'parameters'=8] {'data'}", "across 8 groups", BOXES, 1 / 2 + 1 / 4, 16),
        ("mesh['data'=8,'parameters'=8] {'data','parameters'}", "", BOXES, 2, 16),
    ],
)
def test_what_a_part_of_the_chips_gather_goes_over_its_own_links(
    groups: str, who: str, order: list[tuple[int, ...]], bandwidth: float, hops: int
) -> None:
    devices: list[Any] = [SimpleNamespace(coords=place) for place in order]
    text = (
        "ENTRY %m (x: f32[1000,1000]) -> f32[1000,1000] {\n  %x = f32[1000,1000]{1,0} parameter(0)\n"
        f"  ROOT %r = f32[1000,1000]{{1,0}} all-gather(%x), channel_id=7, replica_groups={groups}\n}}"
    )
    found = estimate(program(text), V5E, devices)
    assert found.collective_bytes == {f"all-gather {who}".strip(): 4e6}
    size = 8 if who else 64
    expected = 4e6 * (size - 1) / size / (bandwidth * V5E.link_bandwidth) + hops * 1e-6
    assert found.exposed == pytest.approx(expected)


def test_a_group_closes_a_ring_only_along_a_whole_axis() -> None:
    """Eight of a v5p's eight chips in a row, or eight of sixteen."""
    collective = one(program(ASYNC).instructions(), "all-reduce-start")
    whole, half = (
        interconnect.seconds(
            collective, CHIPS["v5p"], [chip.coords for chip in chips(1, 1, length)]
        )
        for length in (8, 16)
    )
    assert half - 8e-6 == pytest.approx(2 * (whole - 8e-6))


@pytest.mark.parametrize(("second", "counted"), [("S(1)", 1), ("chain", 2)])
def test_a_collective_spread_over_fusions_counts_once(second: str, counted: int) -> None:
    """Wherever its parts keep the array; two of one channel and one shape are two chains."""
    part = (
        "%{name} (x: f32[1000,1000]) -> f32[1000,1000] {{\n  %x = f32[1000,1000]{{1,0}} parameter(0)\n"
        "  ROOT %r = " + REDUCE.replace("{", "{{").replace("}", "}}") + "\n}}\n"
    )
    entry = (
        "ENTRY %m (x: f32[1000,1000]) -> f32[1000,1000] {\n  %x = f32[1000,1000]{1,0} parameter(0)\n"
        "  %a = f32[1000,1000]{1,0} fusion(%x), kind=kCustom, calls=%first\n"
        "  ROOT %b = f32[1000,1000]{1,0} fusion(%a), kind=kCustom, calls=%second\n}"
    )
    chained = part.replace("to_apply", 'frontend_attributes={{chain_id="%CHAIN%"}}, to_apply')
    changed = chained.replace("{{1,0}} %OP%", "{{1,0:S(1)}} %OP%")
    other = {"S(1)": changed.replace("%CHAIN%", "0"), "chain": chained.replace("%CHAIN%", "1")}
    first = chained.replace("%CHAIN%", "0").format(name="first")
    text = first + other[second].format(name="second") + entry
    found = estimate(program(text, OP="all-reduce"), V5E, chips(2, 4))
    assert found.collectives == {"all-reduce": counted}


def test_planned_cycles_count_between_the_floor_and_a_multiple_of_it() -> None:
    def busy(milliseconds: float) -> float:
        cycles = round(milliseconds * 1e-3 * V5E.clock)
        return times(Cost(flops=197e9, hbm_bytes=1e6, vector_ops=0, cycles=cycles), V5E)[1]

    assert busy(0.5) == pytest.approx(1e-3)
    assert busy(1.4) == pytest.approx(1.4e-3)
    assert busy(30) == pytest.approx(3e-3)


def test_the_range_surrounds_the_middle_and_keeps_to_the_floor() -> None:
    found = Estimate(busy=0.1, floor=0.09, exposed=0.01)
    low, mid, high = found.seconds(V5E)
    assert (low, mid, high) == (0.09, pytest.approx(0.11), pytest.approx(0.143))
