"""Measures a train step and an importance pass on this machine's CPU, das_jax against PyTorch.

    python scripts/benchmark.py                              # 4 layers of roberta-base
    python scripts/benchmark.py --layers 12 --pairs 9        # all of it
    python scripts/benchmark.py --only das_jax.step.masked torch.step.masked

Needs the extra `test`, for torch. Every contender is a process of its own; they take turns, so that what
else the machine does hits all of them. Only the ratios within one run mean anything.
"""

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Iterator
from statistics import median
from typing import Any

from contenders import builders
from contenders.contender import Contender
from contenders.sizes import Sizes
from contenders.workers import Answers, Worker

# For every contender: a step's arrays are fresh memory, which the system hands out page by page.
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}

CONTENDERS = (
    "das_jax.step.masked",
    "das_jax.step.clean",
    "torch.step.masked",
    "torch.step.masked.compiled",
    "torch.step.clean",
    "torch.step.published",
    "das_jax.importance",
    "torch.importance",
    "torch.importance.published",
)
RATIOS = (
    ("das_jax.step.masked", "torch.step.published"),
    ("das_jax.step.clean", "torch.step.published"),
    ("das_jax.step.masked", "torch.step.masked"),
    ("das_jax.step.masked", "torch.step.masked.compiled"),
    ("das_jax.step.clean", "torch.step.clean"),
    ("das_jax.importance", "torch.importance.published"),
    ("das_jax.importance", "torch.importance"),
)


def processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, default=4, help="12 for all of roberta-base")
    parser.add_argument("--batch-size", type=int, default=8, help="examples of a step")
    parser.add_argument("--length", type=int, default=128, help="tokens of an example")
    parser.add_argument("--pairs", type=int, default=5, help="turns of every contender")
    parser.add_argument(
        "--processors",
        type=int,
        default=processors(),
        help="1 compares processor time on a busy machine",
    )
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--json", metavar="FILE", help="also write every time, in seconds")
    parser.add_argument("--worker", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.processors])
    sizes = Sizes(options.batch_size, options.length, layers=options.layers)
    if options.worker is not None:
        serve(options.worker, sizes)
        return
    results = measure(options.only, options.pairs)
    show(results, sizes)
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"sizes": dataclasses.asdict(sizes), "contenders": results}, file, indent=1)


def serve(name: str, sizes: Sizes) -> None:
    """Runs once for every line that it is asked, and answers with the seconds and the peak memory."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    answers = Answers()
    contender: Contender = builders.build(name, sizes)
    contender.begin()
    for _ in range(2):
        contender.run()
    # From here on the peak is that of a step, not of compiling it.
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    answers.say("ready")
    for _ in answers.requests():
        start, start_cpu = time.perf_counter(), time.process_time()
        contender.run()
        seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
        answers.say({"seconds": seconds, "cpu": cpu, "bytes": peak_memory()})


def peak_memory() -> int:
    """The most memory that this process has held since the peak was reset, bytes."""
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def measure(names: list[str], turns: int) -> dict[str, dict[str, Any]]:
    """The seconds of every turn and the peak memory of every contender."""
    workers = {name: start(name) for name in names}
    results: dict[str, dict[str, Any]] = {
        name: {"seconds": [], "cpu": [], "bytes": 0} for name in names
    }
    for turn in range(turns):
        # Forwards and backwards, so that none always comes after the same one.
        for name in names if turn % 2 == 0 else reversed(names):
            answer = workers[name].ask("run")
            if answer is None:
                raise SystemExit(f"{name} failed")
            for clock in ("seconds", "cpu"):
                results[name][clock].append(answer[clock])
            results[name]["bytes"] = answer["bytes"]
            print(f"{name}: {answer['seconds']:.2f} s", file=sys.stderr, flush=True)
    for worker in workers.values():
        worker.end()
    return results


def start(name: str) -> Worker:
    """A contender, built and warmed up, waiting for its turn."""
    print(f"building {name}", file=sys.stderr, flush=True)
    worker = Worker([sys.executable, __file__, *sys.argv[1:], "--worker", name], HUGE_PAGES)
    if worker.answer() != "ready":
        raise SystemExit(f"{name} failed")
    return worker


def ratios(
    results: dict[str, dict[str, Any]], clock: str
) -> Iterator[tuple[str, str, list[float]]]:
    for ours, theirs in RATIOS:
        if ours in results and theirs in results:
            times = (results[name][clock] for name in (theirs, ours))
            yield ours, theirs, [a / b for a, b in zip(*times, strict=True)]


def show(results: dict[str, dict[str, Any]], sizes: Sizes) -> None:
    print(
        f"roberta-base with {sizes.layers} layers, {sizes.batch_size} x {sizes.length} tokens, "
        f"float32, {processors()} processors\n"
    )
    print("| contender | median s | min-max | median CPU s | tokens/s | peak GB |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, result in results.items():
        seconds = result["seconds"]
        print(
            f"| {name} | {median(seconds):.2f} | {min(seconds):.2f}-{max(seconds):.2f} "
            f"| {median(result['cpu']):.2f} | {sizes.tokens / median(seconds):.0f} "
            f"| {result['bytes'] / 1e9:.2f} |"
        )
    print("\n| speed of | against | clock | median of pairs | min-max |\n|---|---|---|---:|---:|")
    for clock in ("seconds", "cpu"):
        for ours, theirs, values in ratios(results, clock):
            print(
                f"| {ours} | {theirs} | {clock} | {median(values):.2f} x "
                f"| {min(values):.2f}-{max(values):.2f} |"
            )


if __name__ == "__main__":
    main()
