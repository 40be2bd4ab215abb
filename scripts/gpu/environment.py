"""What the device is, and the most it can do: a product of matrices and a copy, in JAX and in PyTorch."""

import os
from collections.abc import Callable
from typing import Any

from scripts.gpu.measure import Report, facts, part, timed

os.environ.setdefault(
    "XLA_PYTHON_CLIENT_PREALLOCATE", "false"
)  # PyTorch wants some of the memory, too.


def main(report: Report, tiny: bool) -> None:
    report.add("facts", facts())
    size, copied = (64, 2**20) if tiny else (8192, 2**30)
    in_jax(report, size, copied)
    in_torch(report, size, copied)


def in_jax(report: Report, size: int, copied: int) -> None:
    import jax
    import jax.numpy as jnp

    device = jax.devices()[0]
    report.add(
        "jax.device", {"kind": device.device_kind, "runtime": device.client.platform_version}
    )
    left_NxN, right_NxN = (
        jax.random.normal(key, (size, size), jnp.bfloat16)
        for key in jax.random.split(jax.random.key(0))
    )
    multiply = jax.jit(jnp.matmul)
    product(report, "jax", size, lambda: multiply(left_NxN, right_NxN))
    numbers = jnp.ones(copied // 2, jnp.bfloat16)
    negate = jax.jit(jnp.negative)  # What copies alone XLA leaves out.
    copy(report, "jax", copied, lambda: negate(numbers))


def in_torch(report: Report, size: int, copied: int) -> None:
    import torch

    there = torch.cuda.is_available()
    device = "cuda" if there else "cpu"
    wait = (lambda _: torch.cuda.synchronize()) if there else (lambda _: None)
    report.add("torch.device", {"kind": torch.cuda.get_device_name() if there else device})
    left_NxN, right_NxN = (
        torch.randn(size, size, dtype=torch.bfloat16, device=device) for _ in range(2)
    )
    product(report, "torch", size, lambda: left_NxN @ right_NxN, wait=wait)
    numbers = torch.ones(copied // 2, dtype=torch.bfloat16, device=device)
    there_too = torch.empty_like(numbers)
    copy(report, "torch", copied, lambda: there_too.copy_(numbers), wait=wait)


def product(report: Report, framework: str, size: int, call: Callable[[], Any], **how: Any) -> None:
    """TFLOP/s of a product of random bfloat16 matrices, [size, size]."""
    times = timed(call, **how)
    report.add(
        f"{framework}.product", {"tflops": 2e-12 * size**3 / times["median"], "size": size, **times}
    )


def copy(report: Report, framework: str, copied: int, call: Callable[[], Any], **how: Any) -> None:
    """GB/s, what is read and what is written counted."""
    times = timed(call, **how)
    report.add(
        f"{framework}.copy", {"gb_per_s": 2e-9 * copied / times["median"], "bytes": copied, **times}
    )


if __name__ == "__main__":
    part("environment", main)
