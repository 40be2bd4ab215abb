"""Measures one layer's attention, forward and backward, in every form that runs on this machine's GPU.

    PYTHONPATH=. python scripts/gpu/attention.py OUT

Every form is first compared with the dense one in float32 under the same seeds, by norms. The kernels of
`triton` are also cut in other ways than they are, to see what is fastest.
"""

import dataclasses
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from das_jax.model.attention import ATTENTION, Rule, dense_attention, triton
from das_jax.model.attention.triton import Tile
from scripts.gpu.measure import Report, part, seconds_left, timed

RATE = 0.1
THREADS = 8
MEASURING = 4
"""Seconds to leave for what is measured last."""

TRACING = threading.Lock()
"""One at a time: how kernels are cut is the module's."""


class Case(NamedTuple):
    """Sizes of a layer's attention, and how many texts of them are compared in float32."""

    name: str
    batch: int
    length: int
    heads: int
    groups: int
    size: int
    causal: bool
    compared: int

    @property
    def flops(self) -> float:
        """Of the two products forward and the five backward; of a causal one, of half of each."""
        pairs = self.batch * self.heads * self.length**2 / (2 if self.causal else 1)
        return 7 * 2 * pairs * self.size


CASES = (
    Case("256x128", 256, 128, 12, 12, 64, False, 16),
    Case("64x512", 64, 512, 12, 12, 64, False, 4),
    Case("128x164", 128, 164, 12, 12, 64, False, 16),
    Case("2x4096 causal", 2, 4096, 32, 8, 64, True, 1),
    Case("2x4096 causal, 128 features", 2, 4096, 16, 8, 128, True, 1),
)
TINY = (Case("2x24", 2, 24, 2, 1, 16, False, 2),)

Tiles = Mapping[str, Tile]
VARIANTS: Mapping[str, tuple[Tiles, ...]] = {
    "256x128": (
        {"whole": Tile(128, 32, 8, 1)},
        {"whole": Tile(128, 64, 8, 1)},
        {"whole": Tile(128, 32, 16, 1)},
        {"context": Tile(64, 64, 4, 1)},
        {"context": Tile(64, 32, 4, 1)},
        {"context": Tile(128, 128, 8, 1)},
        {"context": Tile(64, 128, 4, 1)},
    ),
    "64x512": (
        {"context": Tile(64, 64, 4, 2)},
        {"context": Tile(128, 128, 8, 2)},
        {"key": Tile(64, 64, 4, 2)},
        {"key": Tile(128, 32, 8, 2)},
        {"query": Tile(64, 32, 4, 2)},
        {"query": Tile(128, 32, 8, 2)},
    ),
    "128x164": (
        {"context": Tile(64, 64, 4, 2)},
        {"whole": Tile(256, 16, 8, 1)},
        {"whole": Tile(256, 32, 8, 1)},
    ),
}
"""Other ways to cut the kernels of a case, one after the other."""


class Arrays(NamedTuple):
    """Arguments of attention, and a gradient of its result: 0 at padding."""

    query: Any
    key: Any
    value: Any
    mask: Any
    seed: Any
    cotangent: Any


Run = Callable[[Arrays], tuple[jax.Array, ...]]


def arrays(case: Case, dtype: Any = jnp.bfloat16) -> Arrays:
    """Random; every fourth text has a quarter of padding."""
    keys = jax.random.split(jax.random.key(0), 5)
    heads = (case.heads, case.groups, case.groups, case.heads)
    query, key, value, cotangent = (
        jax.random.normal(k, (case.batch, case.length, h, case.size), dtype)
        for k, h in zip(keys, heads, strict=False)
    )
    padded = jnp.where(jnp.arange(case.batch) % 4 == 3, case.length // 4, 0)
    mask = jnp.arange(case.length)[None] < (case.length - padded)[:, None]
    seed = jax.random.bits(keys[4], (case.batch, 2), jnp.uint32)
    return Arrays(query, key, value, mask, seed, jnp.where(mask[..., None, None], cotangent, 0))


def both_ways(attend: Callable[..., jax.Array], case: Case, rate: float) -> Run:
    """Context vectors at real tokens, and the gradients of queries, keys and values."""
    rule = Rule(dropout=rate, causal=case.causal)

    def run(x: Arrays) -> tuple[jax.Array, ...]:
        seed = x.seed if rate else None
        context, backward = jax.vjp(
            lambda *qkv: attend(*qkv, x.mask, rule, seed), x.query, x.key, x.value
        )
        return jnp.where(x.mask[..., None, None], context, 0), *backward(x.cotangent)

    return run


def cudnn_dropping(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array, rule: Rule, seed: Any
) -> jax.Array:
    """With cuDNN's own dropout, whose bits are others: for its time alone."""
    real = None if rule.causal else jnp.sum(mask, axis=1, dtype=jnp.int32)
    return cudnn.dot_product_attention(
        query,
        key,
        value,
        q_seqlen=real,
        kv_seqlen=real,
        scale=query.shape[-1] ** -0.5,
        mask_type=cudnn.MaskType.CAUSAL if rule.causal else cudnn.MaskType.PADDING,
        dropout_rate=rule.dropout,
    )


class Contender(NamedTuple):
    """A form of attention at one dropout rate, cut as it is or otherwise."""

    form: str
    rate: float
    tiles: Tiles | None = None

    @property
    def name(self) -> str:
        cut = {name: dataclasses.astuple(tile) for name, tile in (self.tiles or {}).items()}
        return f"{self.form} {self.rate}" + "".join(f" {name}{tile}" for name, tile in cut.items())

    @property
    def comparable(self) -> bool:
        """Whether its bits of dropout are ours."""
        return self.form != "cudnn" or self.rate == 0

    @property
    def attend(self) -> Callable[..., jax.Array]:
        return ATTENTION[self.form] if self.comparable else cudnn_dropping


def contenders(case: Case) -> Iterator[Contender]:
    yield Contender("triton", 0.0 if case.causal else RATE)
    yield Contender("cudnn", 0.0)
    yield Contender("dense", 0.0 if case.causal else RATE)
    yield Contender("triton", RATE if case.causal else 0.0)
    yield Contender("cudnn", RATE)


def variants(case: Case) -> Iterator[Contender]:
    for tiles in VARIANTS.get(case.name, ()):
        yield Contender("triton", RATE, tiles)


def lowered(case: Case, contender: Contender, shapes: Arrays) -> jax.stages.Lowered:
    """Traced here and now: how kernels are cut is read while it is."""
    with TRACING:
        before = dict(triton.TILES)
        for name, tile in (contender.tiles or {}).items():
            triton.TILES[getattr(triton, f"_triton_{name}_kernel")] = tile
        try:
            return jax.jit(both_ways(contender.attend, case, contender.rate)).lower(shapes)
        finally:
            triton.TILES.update(before)


def distances(case: Case, contender: Contender) -> dict[str, float]:
    """Norms of what it is away from the dense form in float32, relative to that, of a few texts."""
    few = case._replace(batch=case.compared)
    exact = arrays(few, jnp.float32)
    rounded = exact._replace(**{name: getattr(exact, name).astype(jnp.bfloat16) for name in FLOATS})
    exact = exact._replace(**{name: getattr(rounded, name).astype(jnp.float32) for name in FLOATS})
    with jax.default_matmul_precision("highest"):
        expected = jax.jit(both_ways(dense_attention, few, contender.rate))(exact)
    actual = lowered(few, contender, rounded).compile()(rounded)
    return {
        name: float(
            jnp.linalg.norm((a.astype(jnp.float32) - e).ravel()) / jnp.linalg.norm(e.ravel())
        )
        for name, a, e in zip(RESULTS, actual, expected, strict=True)
    }


FLOATS = ("query", "key", "value", "cotangent")
RESULTS = ("context", "to_query", "to_key", "to_value")


def main(report: Report, tiny: bool) -> None:
    there = jax.default_backend() == "gpu"
    cases = TINY if tiny else CASES
    jobs = [(case, one) for case in cases for one in contenders(case)]
    jobs += [(case, one) for case in cases for one in variants(case)]
    jobs = [(case, one) for case, one in jobs if there or one.form != "cudnn"]
    with ThreadPoolExecutor(THREADS) as pool:
        programs = []
        for case, one in jobs:
            shapes = jax.eval_shape(lambda case=case: arrays(case))
            programs.append(pool.submit(lowered(case, one, shapes).compile))
        compared = [
            (case, one, pool.submit(distances, case, one))
            for case, one in jobs
            if one.comparable and one.tiles is None
        ]
        for case, one, away in compared:
            add(report, f"{case.name}, {one.name}: error", away.result)
        firsts: dict[str, float] = {}
        for (case, one), program in zip(jobs, programs, strict=True):
            if seconds_left() < MEASURING:
                break
            add(report, f"{case.name}, {one.name}", measured, case, program, firsts)


def add(report: Report, name: str, result: Callable[..., Any], *arguments: Any) -> None:
    """One that fails says so in its place."""
    try:
        report.add(name, result(*arguments))
    except Exception as error:
        report.add(name, {"failed": f"{type(error).__name__}: {error}"[:2000]})


def measured(case: Case, compiled: Future[Any], firsts: dict[str, float]) -> dict[str, float]:
    """Times; TFLOP/s; and how many times as long as the case's first contender."""
    program, given = compiled.result(), arrays(case)
    times = timed(lambda: program(given), seconds=0.02)
    first = firsts.setdefault(case.name, times["median"])
    return {
        "ms": 1e3 * times["median"],
        "tflops": 1e-12 * case.flops / times["median"],
        "times_the_first": times["median"] / first,
        **times,
    }


if __name__ == "__main__":
    part("attention", main)
