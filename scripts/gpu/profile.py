#!/usr/bin/env python3
"""Where the time of a plain step and of DAS's three passes goes: kernels by time, from a trace.

    PYTHONPATH=. python -P scripts/gpu/profile.py OUT

After `steps.py` on the same machine nothing is compiled again: the programs are in its cache. OUT/profile.md
has the tables, OUT/CONTENDER.hlo.txt.gz the compiled programs.
"""

import gzip
import tempfile
import time
from pathlib import Path
from typing import Any

import jax

from das_jax.training.sharding import make_sharding
from scripts.contenders.das_jax_steps import Session
from scripts.contenders.sizes import Sizes
from scripts.gpu.kernels import markdown, read_trace, summary
from scripts.gpu.measure import Report, part
from scripts.gpu.steps import CACHES

STEPS, WARM_UP = 5, 3
NAMES = ("das_jax.step.plain", "das_jax.step.masked")
SIZES = Sizes(128, 128)


def main(report: Report, tiny: bool) -> None:
    jax.config.update("jax_compilation_cache_dir", str(CACHES / "jax"))
    sizes = Sizes(2, 16, "roberta-tiny") if tiny else SIZES
    platform = jax.default_backend()
    session = Session(sizes, make_sharding(1), platform)
    tables: list[str] = []
    for name in NAMES:
        started = time.monotonic()
        compiled = session.lowered(name, sizes).compile()
        program = compiled.as_text()
        with gzip.open(report.path.with_name(f"{name}.hlo.txt.gz"), "wt") as file:
            file.write(program)
        contender = session.contender(name, sizes, compiled)
        contender.begin()
        events = traced(contender.step, contender.wait, platform)
        found = summary(events, program, STEPS)
        found["compile_seconds"] = time.monotonic() - started
        report.add(name, {"batch_size": sizes.batch_size, "length": sizes.length, **found})
        tables.append(markdown(f"`{name}`, {sizes.batch_size} x {sizes.length} tokens", found))
        print(tables[-1], flush=True)
        report.path.with_suffix(".md").write_text("\n".join(tables))


def traced(step: Any, wait: Any, platform: str) -> list[Any]:
    """The kernels of some steps, one right after the other."""
    for _ in range(WARM_UP):
        wait(step())
    with tempfile.TemporaryDirectory() as directory:
        with jax.profiler.trace(directory):
            for _ in range(STEPS):
                last = step()
            wait(last)
        return read_trace(Path(directory), platform)


if __name__ == "__main__":
    part("profile", main)
