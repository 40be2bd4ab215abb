"""What the parts of `scripts/gpu/check` share: their report, their clock, and what the device is.

A part is a program, `scripts/gpu/PART.py OUT [--tiny]`, run from the repository's root with PYTHONPATH=.

    def main(report: Report, tiny: bool) -> None:
        step = ...
        report.add("plain.128", timed(lambda: step(state, batch)) | {"batch": 512})

    if __name__ == "__main__":
        part("steps", main)
"""

import argparse
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

DEADLINE = "GPU_CHECK_DEADLINE"
"""The variable in which `check` tells a part when it will be stopped, as `time.time()` counts."""

PACKAGES = (
    "jax",
    "jaxlib",
    "jax-cuda13-plugin",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "torch",
    "triton",
    "transformers",
    "nvidia-cudnn-cu13",
    "nvidia-cublas",
    "nvidia-cuda-runtime",
    "nvidia-cuda-nvcc",
)
"""Whose versions may change a figure."""


class Report:
    """A part's results, in a JSON file that is whole whenever the part ends, or is ended.

    Attributes:
      results: by name, in the order in which they were known.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.results = path, dict[str, Any]()

    def add(self, name: str, result: Any) -> None:
        """Keeps a result, or takes another in its place, and prints it in one line."""
        self.results[name] = result
        write_json(self.path, self.results)
        print(f"{name}: {_line(result)}", flush=True)


def part(name: str, main: Callable[[Report, bool], None]) -> None:
    """Runs a part as its command line says: OUT, where the report goes, and `--tiny`, for a CPU.

    Args:
      name: of the part; the report is OUT/NAME.json.
      main: measures; its second argument is True for a trial of the program itself: tiny shapes, seconds.
    """
    parser = argparse.ArgumentParser(description=f"The part {name} of scripts/gpu/check.")
    parser.add_argument("out", type=Path, help="the directory of the results")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes; its figures mean nothing")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    main(Report(arguments.out / f"{name}.json"), arguments.tiny)


def seconds_left() -> float:
    """How long this part may still take; infinite where nobody will stop it."""
    return float(os.environ.get(DEADLINE, "inf")) - time.time()


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file, whole or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(json.dumps(value, indent=2, default=str) + "\n", encoding="utf-8")
    beside.replace(path)


def spread(samples: Sequence[float]) -> dict[str, float]:
    """Median, lowest and highest of repeats, and how many there were."""
    return {
        "median": median(samples),
        "lowest": min(samples),
        "highest": max(samples),
        "repeats": len(samples),
    }


def _block(value: Any) -> None:
    import jax

    jax.block_until_ready(value)


def timed(
    call: Callable[[], Any],
    *,
    wait: Callable[[Any], object] = _block,
    repeats: int = 10,
    seconds: float = 0.1,
    most: float = 20.0,
) -> dict[str, float]:
    """Seconds of a call, the device kept busy as in a run: the host waits at the end of a window of calls.

    The first call compiles and is timed apart; the second warms up, and the third decides how many calls
    fill a window.

    Args:
      call: one step; what it returns is waited for. State that it donates it must keep itself.
      wait: returns when what a call returned is there, and all before it: `torch.cuda.synchronize` of a
        PyTorch step.
      repeats: windows.
      seconds: that a window lasts at least.
      most: seconds that all windows may last; there are fewer of them then, but three.

    Returns:
      The spread of the seconds per call, one sample a window; `calls`, of a window; `first_call`, in seconds.
    """
    started = time.perf_counter()
    wait(call())
    first = time.perf_counter() - started
    wait(call())
    calls, samples = 1, list[float]()
    while len(samples) < repeats and (len(samples) < 3 or time.perf_counter() - started < most):
        began = time.perf_counter()
        for _ in range(calls - 1):
            call()
        wait(call())
        each = (time.perf_counter() - began) / calls
        if calls == 1 and not samples and each < seconds:
            calls = int(seconds / each) + 1
            started = time.perf_counter()
        else:
            samples.append(each)
    return {**spread(samples), "calls": calls, "first_call": first}


def facts() -> dict[str, Any]:
    """The device, its driver, this machine and the versions, none of it by importing a framework."""
    return {
        "gpu": _nvidia_smi(
            "name", "driver_version", "memory.total", "power.limit", "clocks.max.sm"
        ),
        "processor": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: found for name in PACKAGES if (found := _version(name))},
        "commit": _output("git", "rev-parse", "HEAD"),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _nvidia_smi(*names: str) -> dict[str, str] | None:
    found = _output("nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader")
    return dict(zip(names, found.splitlines()[0].split(", "), strict=True)) if found else None


def _output(*command: str) -> str | None:
    """What a program printed, if it is there and did not fail."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _line(result: Any) -> str:
    if isinstance(result, dict):
        return ", ".join(f"{name} {_line(value)}" for name, value in result.items())
    return f"{result:.5g}" if isinstance(result, float) else str(result)
