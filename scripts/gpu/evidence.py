"""The comparison of MiniLM, by several processes on one GPU, with as many steps as the time allows.

First a process per seed learns the warm-up, which all systems share; how fast that goes says how many steps
the systems can have. Then all processes learn cells. What is finished at the end is reported: OUT/evidence
has the measures of every finished cell, and the pages of the largest part of the comparison that is whole.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.gpu.measure import Report, part, seconds_left, write_json

CONFIG = Path("configs/comparisons/minilm.yaml")

TINY = (
    *("--model.path=demo:bert-tiny", "--data.length=64", "--general.steps=4"),
    *("--training.batch_size=8", "--evaluation.examples=16", "--seeds=[0]", "--orders=1"),
)

WORKERS = 8
"""Processes that share the GPU: one with a small model leaves most of it idle."""

PLAIN_STEPS = 3 * (12 + 12 + 12 + 6 + 6 + 12 * 3.5)
"""What a step per domain costs over all cells, in plain steps: 12 cells each of plain, merge, replay and das,
6 each of joint and alone; a step of das is 3.5."""

LEARNING = 0.5
"""The share of the time that is planned for steps; the rest is for compiling, measuring and saving."""

REPORTING = 20
"""Seconds at the end."""

FEWEST, MOST = 25, 400
"""Steps per domain."""


class Workers:
    """Processes of `das-jax compare`, each with a log of its own."""

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, *options: str) -> None:
        log = self.logs / f"worker-{len(self.processes)}.log"
        command = [sys.executable, "-m", "das_jax.cli", "compare", str(CONFIG), *options]
        environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        with log.open("wb") as stream:
            self.processes.append(
                subprocess.Popen(command, env=environment, stdout=stream, stderr=subprocess.STDOUT)
            )

    def running(self) -> bool:
        return any(process.poll() is None for process in self.processes)

    def failed(self) -> list[str]:
        """The last line of each that ended with an error."""
        return [
            (self.logs / f"worker-{number}.log")
            .read_text(errors="replace")
            .strip()
            .splitlines()[-1]
            for number, process in enumerate(self.processes)
            if process.poll() not in (None, 0)
        ]

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


def main(report: Report, tiny: bool) -> None:
    options = TINY if tiny else ()
    out = report.path.parent / "evidence"
    out.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=roomy(), ignore_cleanup_errors=True) as directory:
        place = Path(directory)
        steps = 2 if tiny else warm_up(report, place, out, options)
        options = (*options, f"--training.steps={steps}", f"--output_dir={place / 'cells'}")
        learn(report, place / "cells", out, options)
        os.environ["JAX_PLATFORMS"] = "cpu"  # This process measures nothing.
        tell(report, out, options)


def roomy() -> Path | None:
    """Memory if there is enough of it: every stage writes its model, and most of them are soon removed."""
    memory = Path("/dev/shm")
    return memory if memory.is_dir() and shutil.disk_usage(memory).free > 24e9 else None


def warm_up(report: Report, place: Path, out: Path, options: Sequence[str]) -> int:
    """Learns the warm-ups, each in a process, and returns the steps per domain that there is time for."""
    from das_jax.comparing.file import read_comparison

    seeds = read_comparison(CONFIG, options).settings.seeds or (0,)
    began, workers = time.time(), Workers(out)
    for seed in seeds:
        workers.start(
            *options,
            f"--seeds=[{seed}]",
            "--orders=1",
            "--training.steps=10",
            f"--output_dir={place / 'warm'}",
        )
    kept = place / "warm" / "warm-up"
    while len(list(kept.glob("seed-*"))) < len(seeds):
        if workers.failed() or not workers.running():
            failed = "; ".join(workers.failed())
            workers.kill()
            raise SystemExit(f"the warm-up failed: {failed}")
        time.sleep(0.5)
    workers.kill()
    (place / "cells").mkdir()
    kept.rename(place / "cells" / "warm-up")
    found = [
        last_metrics(path)
        for path in (place / "cells" / "warm-up").glob("seed-*/00-*/metrics.jsonl")
    ]
    rate = sum(1 / each["seconds_per_step"] for each in found)
    left = seconds_left()
    if left == float("inf"):
        steps = MOST
    else:
        steps = int(LEARNING * (left - REPORTING) * rate / PLAIN_STEPS) // 25 * 25
    steps = min(max(steps, FEWEST), MOST)
    report.add(
        "warm-up",
        {
            "seconds": time.time() - began,
            "plain_steps_per_second": rate,
            "loss": [each["loss"] for each in found],
            "steps_per_domain": steps,
        },
    )
    return steps


def last_metrics(path: Path) -> dict[str, float]:
    return json.loads(path.read_text().splitlines()[-1])


def learn(report: Report, cells: Path, out: Path, options: Sequence[str]) -> None:
    """Lets all processes learn until everything is finished, or until it is time to report."""
    began, workers = time.time(), Workers(out)
    for _ in range(min(WORKERS, os.cpu_count() or 1)):
        workers.start(*options)
    said = 0
    while workers.running() and seconds_left() > REPORTING:
        time.sleep(0.5)
        finished = len(list(cells.glob("cells/*/*/order-*/seed-*/cell.json")))
        if finished > said:
            report.add("learned", {"cells": finished, "seconds": time.time() - began})
            said = finished
    failed = workers.failed()
    workers.kill()
    if failed:
        report.add("ended early", failed)


def tell(report: Report, out: Path, options: Sequence[str]) -> None:
    """Writes the measures of the finished cells, and the pages."""
    from das_jax.comparing.compare import cells_of_comparison, report_of_comparison, show
    from das_jax.comparing.file import read_comparison
    from das_jax.comparing.outcomes import measured, outcomes_of
    from das_jax.training.console import Console

    comparison = read_comparison(CONFIG, options)
    cells = cells_of_comparison(comparison)
    write_json(out / "cells.json", [row(each) for each in outcomes_of(cells)])
    seeds = comparison.settings.seeds or (0,)
    for orders, count in ((2, 3), (1, 3), (1, 2), (1, 1)):
        part_of_it = [f"--orders={orders}", f"--seeds={json.dumps(seeds[:count])}"]
        smaller = read_comparison(CONFIG, [*options, *part_of_it])
        chosen = cells_of_comparison(smaller)
        points = {(cell.point.system, cell.point.name) for cell in chosen}
        if len(measured(chosen)) == len(points):
            report.add("reported", {"orders": orders, "seeds": len(seeds[:count])})
            show(report_of_comparison(smaller, chosen, []), out / "report", Console())
            return
    report.add("reported", "no part of the comparison is whole; see evidence/cells.json")


def row(outcome: Any) -> dict[str, Any]:
    cell = outcome.cell
    return {
        "system": cell.point.system,
        "point": cell.point.name,
        "order": cell.order,
        "seed": cell.seed,
        "steps": outcome.steps,
        "flops": outcome.flops,
        "seconds": outcome.seconds,
        "heldout": dict(outcome.heldout),
        "validation": dict(outcome.validation),
    }


if __name__ == "__main__":
    part("evidence", main)
