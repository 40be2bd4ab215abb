"""What `steps.py` builds and measures."""

from dataclasses import dataclass
from typing import NamedTuple

from scripts.contenders.sizes import Sizes


class Job(NamedTuple):
    """What is measured: a contender and its sizes."""

    contender: str
    sizes: Sizes

    @property
    def name(self) -> str:
        sizes = self.sizes
        return f"{self.contender} {sizes.model} {sizes.batch_size}x{sizes.length}"


@dataclass(frozen=True)
class Wave:
    """What is built together, most important first.

    Attributes:
      jobs: those of das_jax share a process, all others have one each.
      seconds: after which what is not built is left out.
    """

    jobs: tuple[Job, ...]
    seconds: int


def _wave(model: str, seconds: int, jobs: str) -> Wave:
    """Of lines such as `das_jax.step.plain 128 x 512`: a contender, the texts of a step and their tokens."""
    parts = (line.split() for line in jobs.strip().splitlines())
    sized = ((name, Sizes(int(batch), int(length), model)) for name, batch, _, length in parts)
    return Wave(tuple(Job(*each) for each in sized), seconds)


def _decoder(model: str, *shapes: tuple[int, int]) -> Wave:
    names = ("das_jax.step.causal", "torch.step.causal.compiled")
    return Wave(tuple(Job(name, Sizes(*shape, model)) for shape in shapes for name in names), 150)


WAVES = {
    "base": _wave(
        "roberta-base",
        140,
        """
        das_jax.step.clean 128 x 128
        das_jax.step.masked 128 x 128
        das_jax.step.economy 128 x 128
        das_jax.step.plain 128 x 128
        das_jax.forward_backward 128 x 128
        das_jax.step.masked 32 x 512
        das_jax.importance 128 x 128
        das_jax.step.plain 32 x 512
        das_jax.step.plain 256 x 128
        torch.step.plain.compiled 128 x 128
        torch.step.plain.compiled 256 x 128
        torch.step.masked.compiled 128 x 128
        torch.step.clean.compiled 64 x 128
        torch.step.published 32 x 128
        torch.importance.compiled 128 x 128
        torch.step.plain.compiled 32 x 512
        torch.step.masked.compiled 32 x 512
        torch.step.published 8 x 512
        """,
    ),
    "more": _wave(
        "roberta-base",
        140,
        """
        das_jax.step.clean 32 x 512
        das_jax.step.economy 32 x 512
        das_jax.step.masked 64 x 128
        das_jax.step.plain 64 x 128
        das_jax.step.plain 64 x 512
        das_jax.forward_backward 32 x 512
        das_jax.importance 32 x 512
        das_jax.importance.general 128 x 128
        torch.step.plain.compiled 64 x 512
        torch.step.clean.compiled 16 x 512
        torch.step.published 64 x 128
        torch.importance.compiled 32 x 512
        """,
    ),
    "autotuned": _wave(
        "roberta-base",
        240,
        """
        das_jax.step.plain 256 x 128
        torch.step.plain.compiled 256 x 128
        torch.step.plain.autotuned 256 x 128
        torch.step.masked.autotuned 128 x 128
        """,
    ),
    "large": _wave(
        "roberta-large",
        150,
        """
        das_jax.step.masked 64 x 128
        das_jax.step.plain 64 x 128
        das_jax.step.plain 128 x 128
        torch.step.plain.compiled 64 x 128
        torch.step.masked.compiled 64 x 128
        torch.step.plain.compiled 128 x 128
        """,
    ),
    "smollm2": _decoder("SmolLM2-135M", (16, 2048), (8, 2048)),
    "qwen3": _decoder("Qwen3-0.6B", (4, 2048), (2, 4096)),
    "llama": _decoder("Llama-3.2-1B", (4, 2048), (2, 4096)),
}
USUAL = ("base",)
TINY = {
    "tiny": Wave(
        tuple(
            Job(name, Sizes(8, 16, "roberta-tiny"))
            for name in dict.fromkeys(
                job.contender for each in ("base", "more") for job in WAVES[each].jobs
            )
        ),
        1000,
    ),
    "tiny decoder": Wave(
        tuple(Job(job.contender, Sizes(2, 16, "llama-tiny")) for job in WAVES["llama"].jobs[:2]),
        300,
    ),
}
