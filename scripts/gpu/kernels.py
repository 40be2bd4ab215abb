"""A profiler's trace joined with the compiled program: where the time of a step goes, kernel by kernel."""

import gzip
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

GROUPS = (
    ("copies", r"^(memcpy|memset|copy|wrapped_copy|transpose|input_transpose|loop_transpose)"),
    ("attention", r"^triton_(?!softmax)|pallas_call|flash|fmha|cudnn.*attention|sdpa"),
    ("attention", r"attention/[^/]*->"),
    ("products", r"^(nvjet|cublas|cutlass|splitk|.*gemm|sm\d\d_|ampere_|hopper_)|dot_general"),
    ("embeddings", r"/embeddings/(?!layer_norm)|jit\(_take\)"),
    ("norms", r"layer_norm|_norm/"),
    ("loss and logits", r"LMHead|take_along_axis|jvp\(\)/"),
    ("optimizer and metrics", r"jit\(train_step\)/(?!.*jvp)"),
    ("slices and sums of parameters", r"jvp\(Transformer\)\)?/(slice|concatenate)"),
    ("dropout, GELU, residuals, biases", r"/layers/"),
    ("masking and keys", r"vmap|threefry"),
)
"""By the first that is found in `kernel op_name`, or, with ^, at its beginning."""


class Event(NamedTuple):
    """A kernel that ran.

    Attributes:
      kernel: its name.
      instruction: of the compiled program; empty if the profiler does not say.
      start: microseconds.
      duration: microseconds.
    """

    kernel: str
    instruction: str
    start: float
    duration: float


def read_trace(directory: Path, platform: str) -> list[Event]:
    """The events of the device, or on a CPU those that belong to an instruction, of what
    `jax.profiler.trace` left in a directory.
    """
    (file,) = directory.rglob("*.trace.json.gz")
    with gzip.open(file, "rt") as stream:
        events = json.load(stream)["traceEvents"]
    names = {
        (event["pid"], event.get("tid")): event["args"].get("name", "")
        for event in events
        if event.get("ph") == "M" and event["name"] in ("process_name", "thread_name")
    }
    processes = {
        pid: name for (pid, tid), name in names.items() if "device:" in name or tid is None
    }
    found = []
    for event in events:
        if event.get("ph") != "X":
            continue
        arguments = event.get("args", {})
        instruction = arguments.get("hlo_op", "")
        if platform == "gpu":
            line = names.get((event["pid"], event.get("tid")), "")
            wanted = "GPU" in processes.get(event["pid"], "") and "Stream" in line
        else:
            wanted = bool(instruction)
        if wanted:
            found.append(Event(event["name"], instruction, event["ts"], event["dur"]))
    return sorted(found, key=lambda event: event.start)


def op_names(program: str) -> dict[str, str]:
    """The `op_name` of every instruction of a compiled program, by its name and by that of its kernel; of one
    that has none, that of the last one that it fuses, or of the first one that reads it.
    """
    found: dict[str, str] = {}
    inside: dict[str, str] = {}
    computation = ""
    for line in program.splitlines():
        if match := re.match(r"(?:ENTRY )?%?([\w.-]+) .*\{$", line):
            computation = match[1]
        match = re.match(r"\s+(?:ROOT )?%?([\w.-]+) = (.*)", line)
        if not match:
            continue
        instruction, rest = match.groups()
        own = re.search(r'op_name="([^"]+)"', rest)
        calls = re.search(r"calls=%?([\w.-]+)", rest)
        name = own[1] if own else inside.get(calls[1], "") if calls else ""
        if name:
            inside[computation] = name
            for read in re.findall(r"%([\w.-]+)", rest.partition("metadata=")[0]):
                _name(found, read, name)
            _name(found, instruction, name)
    return found


def _name(found: dict[str, str], instruction: str, name: str) -> None:
    found.setdefault(instruction, name)
    found.setdefault(re.sub(r"[.-]", "_", instruction), name)


def group_of(kernel: str, op_name: str) -> str:
    where = f"{kernel} {op_name}"
    return next(
        (group for group, pattern in GROUPS if re.search(pattern, where, re.IGNORECASE)), "other"
    )


def busy(events: Iterable[Event]) -> float:
    """Microseconds in which at least one kernel runs."""
    total, until = 0.0, float("-inf")
    for event in events:
        end = event.start + event.duration
        total += max(0.0, end - max(until, event.start))
        until = max(until, end)
    return total


def summary(events: list[Event], program: str, steps: int, top: int = 40) -> dict[str, Any]:
    """Milliseconds of a step by group and by kernel.

    Args:
      events: of all steps, in order.
      program: the text of the compiled program.
      steps: how many were traced.
      top: kernels that are listed.
    """
    names = op_names(program)
    groups: dict[str, float] = defaultdict(float)
    kernels: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        op_name = names.get(event.instruction) or names.get(event.kernel) or ""
        groups[group_of(event.kernel, op_name)] += event.duration / 1e3 / steps
        kernels[event.kernel, op_name].append(event.duration / 1e3)
    span = (
        max(event.start + event.duration for event in events) - min(event.start for event in events)
    ) / 1e3
    running = busy(events) / 1e3
    ordered = sorted(kernels.items(), key=lambda item: -sum(item[1]))
    return {
        "ms_of_a_step": span / steps,
        "busy_ms_of_a_step": running / steps,
        "gaps_share": 1 - running / span,
        "kernels_of_a_step": len(events) / steps,
        "groups": dict(sorted(groups.items(), key=lambda item: -item[1])),
        "kernels": [
            {
                "kernel": kernel,
                "op_name": op_name,
                "group": group_of(kernel, op_name),
                "ms_of_a_step": sum(times) / steps,
                "count_of_a_step": len(times) / steps,
            }
            for (kernel, op_name), times in ordered[:top]
        ],
    }


def markdown(title: str, found: Mapping[str, Any]) -> str:
    return "\n".join(_lines(title, found)) + "\n"


def _lines(title: str, found: Mapping[str, Any]) -> Iterator[str]:
    whole = found["ms_of_a_step"]
    yield (
        f"{title}: {whole:.2f} ms a step, {found['kernels_of_a_step']:.0f} kernels, "
        f"{found['gaps_share']:.1%} gaps\n"
    )
    yield "| | ms a step | share |\n|---|---:|---:|"
    for group, each in found["groups"].items():
        yield f"| {group} | {each:.2f} | {each / whole:.1%} |"
    yield "\n| kernel | where | group | times | ms a step |\n|---|---|---|---:|---:|"
    for each in found["kernels"]:
        yield (
            f"| `{each['kernel'][:60]}` | {each['op_name'][-90:]} | {each['group']} "
            f"| {each['count_of_a_step']:.0f} | {each['ms_of_a_step']:.3f} |"
        )
