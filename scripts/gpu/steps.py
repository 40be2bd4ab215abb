#!/usr/bin/env python3
"""Measures train steps and importance passes on this machine's GPU, das_jax and PyTorch taking turns.

    PYTHONPATH=. python -P scripts/gpu/steps.py OUT                 # roberta-base at 128 and 512 tokens
    PYTHONPATH=. python -P scripts/gpu/steps.py OUT --only large qwen3  # what takes too long for a first look

Contenders are built at the same time, each of PyTorch's in a process of its own, those of das_jax in threads
of one; then they take turns, and nothing else runs meanwhile. One wave is built and measured after the other.
OUT/steps.json and OUT/steps.md have all that is known at any time.
"""

import argparse
import dataclasses
import itertools
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from scripts.contenders.contender import Contender
from scripts.contenders.sizes import Sizes
from scripts.contenders.workers import Answers, Worker
from scripts.gpu.measure import Report, facts, seconds_left, timed
from scripts.gpu.steps_jobs import TINY, USUAL, WAVES, Job, Wave
from scripts.gpu.steps_table import markdown

TURNS, WINDOWS, WINDOW_SECONDS, TURN_SECONDS = 2, 5, 0.15, 5.0
THREADS = 6
"""Programs of das_jax that are compiled at a time; each has threads of its own."""

CACHES = Path(tempfile.gettempdir()) / "das_jax_gpu_check"
"""Of compiled programs, for `profile.py` and for a second run on the same machine."""

GRACE = 40
"""Seconds that a program may take once its compilation has begun, beyond the time of its wave."""

MEASURING = 70
"""Seconds that the turns of a wave take, about."""

JAX_MEMORY = "0.40"
"""The share of the device's memory that das_jax gets; PyTorch's processes share what is left."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="the directory of the results")
    parser.add_argument("--only", nargs="+", choices=WAVES, default=USUAL, metavar="WAVE")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes; its figures mean nothing")
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        serve([Job(name, Sizes(**sizes)) for name, sizes in options.worker])
        return
    options.out.mkdir(parents=True, exist_ok=True)
    rows = Rows(options.out)
    for name, wave in (
        TINY if options.tiny else {each: WAVES[each] for each in options.only}
    ).items():
        left = seconds_left() - MEASURING
        if left < 30:
            rows.report.add(f"wave {name}", "left out: no time")
            continue
        run(wave, rows, min(wave.seconds, left))
    print(rows.table, flush=True)


class Rows:
    """What is known of every job, in OUT/steps.json and OUT/steps.md."""

    def __init__(self, out: Path) -> None:
        self.report, self.path = Report(out / "steps.json"), out / "steps.md"
        self.report.add("facts", facts())
        self.rows: dict[str, dict[str, Any]] = {}

    def add(self, job: Job, **known: Any) -> None:
        row = self.rows.setdefault(job.name, {"contender": job.contender, **vars(job.sizes)})
        row.update(known)
        self.report.add(job.name, row)
        self.path.write_text(self.table)

    @property
    def table(self) -> str:
        return markdown(self.rows.values())


def run(wave: Wave, rows: Rows, seconds: float) -> None:
    """Builds what a wave has, and lets it take turns."""
    until = time.monotonic() + seconds
    workers = [Building(jobs, until) for jobs in _processes(wave.jobs)]
    try:
        for job, flops in useful_flops(wave.jobs):
            rows.add(job, flops=flops)
        for worker in workers:
            worker.await_built(rows)
        for turn in range(TURNS):
            # Forwards and backwards, so that none always comes after the same one.
            turns = [(worker, job) for worker in workers for job in worker.built]
            for worker, job in turns if turn % 2 == 0 else reversed(turns):
                worker.measure(job, rows)
    finally:
        for worker in workers:
            worker.end()


def useful_flops(jobs: Sequence[Job]) -> Iterator[tuple[Job, int]]:
    """Of every job, by formula."""
    import jax

    from scripts.contenders.das_jax_steps import useful_flops

    jax.config.update("jax_platforms", "cpu")  # The device is the workers'.
    yield from ((job, useful_flops(job.contender, job.sizes)) for job in jobs)


def _processes(jobs: Sequence[Job]) -> Iterator[list[Job]]:
    ours = [job for job in jobs if job.contender.startswith("das_jax.")]
    yield ours
    yield from ([job] for job in jobs if job not in ours)


class Building:
    """A process that builds jobs until it is too late, and what it has built."""

    def __init__(self, jobs: list[Job], until: float) -> None:
        self.jobs, self.until, self.built = jobs, until, list[Job]()
        self.samples: dict[Job, list[dict[str, float]]] = {}
        asked = json.dumps([(job.contender, dataclasses.asdict(job.sizes)) for job in jobs])
        environment = {
            # A part of the memory from the start: what grows as needed is never given back, and PyTorch
            # finds none left.
            "XLA_PYTHON_CLIENT_MEM_FRACTION": JAX_MEMORY,
            "JAX_COMPILATION_CACHE_DIR": str(CACHES / "jax"),
            "TORCHINDUCTOR_CACHE_DIR": str(CACHES / jobs[0].name.replace(" ", "-")),
            "TORCHINDUCTOR_COMPILE_THREADS": "4",
            "PYTHONSAFEPATH": "1",  # Beside this file is one that is called as a module of Python's own.
            "STEPS_BUILD_SECONDS": str(until - time.monotonic()),
        }
        command = [sys.executable, __file__, str(CACHES), "--worker", asked]
        self.worker = Worker(command, environment)

    def await_built(self, rows: Rows) -> None:
        waiting = list(self.jobs)
        while waiting:
            answer = self.worker.answer(self.until + GRACE)
            if answer is None:
                why = "not built in time" if self.worker.process.poll() is None else "process ended"
                for job in waiting:
                    rows.add(job, failed=why)
                return
            job = self.jobs[answer.pop("job")]
            waiting.remove(job)
            if "failed" not in answer:
                self.built.append(job)
            rows.add(job, **answer)

    def measure(self, job: Job, rows: Rows) -> None:
        if job not in self.built:
            return
        until = time.monotonic() + 4 * TURN_SECONDS + 20
        answer = self.worker.ask(self.jobs.index(job), until)
        while answer is not None and "job" in answer:  # Built too late.
            answer = self.worker.answer(until)
        if answer is None:  # What comes later would be taken for another's.
            self.end()
            for each in self.built:
                rows.add(each, failed="did not answer")
            self.built = []
            return
        if "failed" in answer:
            self.built.remove(job)
            rows.add(job, **answer)
            return
        turns = self.samples.setdefault(job, [])
        turns.append(answer["times"])
        medians = sorted(each["median"] for each in turns)
        rows.add(
            job,
            seconds=medians[len(medians) // 2],
            lowest=min(each["lowest"] for each in turns),
            highest=max(each["highest"] for each in turns),
            windows=sum(each["repeats"] for each in turns),
            bytes=answer["bytes"],
        )

    def end(self) -> None:
        self.worker.end()


# A worker, in a process of its own.


def serve(jobs: list[Job]) -> None:
    """Builds all, answering one by one, and measures what it is asked to."""
    answers = Answers()
    until = time.monotonic() + float(os.environ["STEPS_BUILD_SECONDS"])
    contenders: dict[int, Contender] = {}
    for number, known, contender in build_all(jobs, until):
        if contender is not None:
            contenders[number] = contender
        answers.say({"job": number, **known})
    for number in answers.requests():
        contender = contenders[number]
        try:
            contender.begin()
            times = timed(
                contender.step,
                wait=contender.wait,
                repeats=WINDOWS,
                seconds=WINDOW_SECONDS,
                most=TURN_SECONDS,
            )
            answers.say({"times": times, "bytes": contender.bytes()})
            contender.end()
        except Exception as error:
            traceback.print_exc()
            answers.say({"failed": _reason(error)})


Built = tuple[int, dict[str, Any], Contender | None]


def build_all(jobs: list[Job], until: float) -> Iterator[Built]:
    if jobs[0].contender.startswith("das_jax."):
        return _das_jax(jobs, until)
    return (_torch(number, job, until) for number, job in enumerate(jobs))


def _das_jax(jobs: list[Job], until: float) -> Iterator[Built]:
    """Traces one after the other, compiles in threads; what has not begun when it is too late is left out."""
    import jax

    from das_jax.training.sharding import make_sharding
    from scripts.contenders.das_jax_steps import Session

    sharding, platform = make_sharding(1), jax.default_backend()
    sessions: dict[Any, Session] = {}

    def session(job: Job) -> Session:
        model = job.sizes.model, job.sizes.length
        return sessions.setdefault(model, Session(job.sizes, sharding, platform))

    longest = 0.0

    def compile_one(number: int, job: Job) -> Built:
        nonlocal longest
        if time.monotonic() + longest > until:
            return number, {"failed": "not built in time"}, None
        started = time.monotonic()
        lowered = session(job).lowered(job.contender, job.sizes)
        traced = time.monotonic()
        compiled = lowered.compile()
        longest = max(longest, time.monotonic() - started)
        known = {
            "trace_seconds": traced - started,
            "compile_seconds": time.monotonic() - traced,
        }
        contender = session(job).contender(job.contender, job.sizes, compiled)
        return number, {**known, "remarks": contender.remarks}, contender

    for job in jobs:
        session(job)
    with ThreadPoolExecutor(THREADS) as pool:
        futures = {pool.submit(compile_one, *each): each[0] for each in enumerate(jobs)}
        for future in as_completed(futures):
            try:
                yield future.result()
            except Exception as error:
                traceback.print_exc()
                yield futures[future], {"failed": _reason(error)}, None


def _torch(number: int, job: Job, until: float) -> Built:
    """Builds and takes the first steps, which compile; others may hold the memory for a moment."""
    import torch

    from scripts.contenders.torch_steps import BUILDERS

    for attempt in itertools.count(1):
        try:
            started = time.monotonic()
            contender = BUILDERS[job.contender](job.sizes)
            contender.run()
            seconds = time.monotonic() - started
            contender.run()
            contender.end()
            return number, {"compile_seconds": seconds, "remarks": contender.remarks}, contender
        except torch.cuda.OutOfMemoryError as error:
            traceback.print_exc()
            contender = None
            torch.cuda.empty_cache()
            if attempt == 5 or time.monotonic() > until - 10:
                return number, {"failed": _reason(error)}, None
            time.sleep(5)
        except Exception as error:
            traceback.print_exc()
            return number, {"failed": _reason(error)}, None
    raise AssertionError


def _reason(error: Exception) -> str:
    """In one line, for the table; the log has it whole."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200].replace("|", "/")


if __name__ == "__main__":
    main()
