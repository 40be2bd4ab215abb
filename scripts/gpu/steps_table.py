"""The rows of `steps.py` as tables for docs/performance.md: all of them, and the ratios that are wanted."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

PEAK = 989e12
"""bfloat16 FLOP/s of an H100 with dense matrices."""

Row = Mapping[str, Any]


class Ratio(NamedTuple):
    """A comparison of two contenders, each at the batch that is fastest per token.

    Attributes:
      title: what it says.
      over: the contender whose seconds per token are divided.
      under: by those of this.
      goal: which way, and how much.
    """

    title: str
    over: str
    under: str
    goal: str


PLAIN, THREE, FOUR = (f"das_jax.step.{name}" for name in ("plain", "masked", "clean"))
RATIOS = (
    Ratio("plain step, x the best PyTorch", "torch.step.plain", PLAIN, ">= 1.2"),
    Ratio("DAS, three passes, in plain steps", THREE, PLAIN, "<= 2.7"),
    Ratio("DAS, four passes, in plain steps", FOUR, PLAIN, "<= 3.5"),
    Ratio("DAS, economy, in plain steps", "das_jax.step.economy", PLAIN, "<= 1.5"),
    Ratio("DAS, three passes, x the published PyTorch", "torch.step.published", THREE, ">= 4"),
    Ratio("DAS, four passes, x the published PyTorch", "torch.step.published", FOUR, ">= 4"),
    Ratio("DAS, three passes, x the best PyTorch", "torch.step.masked", THREE, ""),
    Ratio("DAS, four passes, x the best PyTorch", "torch.step.clean", FOUR, ""),
    Ratio(
        "importance pass, in forward and backward passes",
        *("das_jax.importance", "das_jax.forward_backward", "<= .75"),
    ),
    Ratio(
        "importance to general knowledge, likewise",
        *("das_jax.importance.general", "das_jax.forward_backward", ""),
    ),
    Ratio("importance pass, x the best PyTorch", "torch.importance", "das_jax.importance", ""),
    Ratio(
        "decoder's step, x transformers and torch.compile",
        *("torch.step.causal", "das_jax.step.causal", ""),
    ),
)


def markdown(rows: Collection[Row]) -> str:
    """Both tables, for every model and length."""
    parts = [_all(rows)]
    for model, length in dict.fromkeys((row["model"], row["length"]) for row in rows):
        alike = [row for row in rows if (row["model"], row["length"]) == (model, length)]
        lines = [*_ratios([row for row in alike if "seconds" in row])]
        if lines:
            parts.append(
                f"{model}, {length} tokens, each at its fastest batch:\n\n"
                "| | goal | measured | batches |\n|---|---|---:|---|\n" + "\n".join(lines) + "\n"
            )
    return "\n".join(parts)


def _all(rows: Collection[Row]) -> str:
    lines = [
        "| | batch | ms, median | lowest-highest | tokens/s | MFU | GiB | compiled in s |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        title = f"`{row['contender']}` {row['model']}"
        batch = f"{row['batch_size']} x {row['length']}"
        if "seconds" not in row:
            lines.append(f"| {title} | {batch} | {row.get('failed', 'built')} | | | | | |")
            continue
        low, high = (1e3 * row[name] for name in ("lowest", "highest"))
        mfu = f"{mfu_of(row):.3f}".lstrip("0") if "flops" in row else ""
        memory = f"{row['bytes'] / 2**30:.1f}" if row.get("bytes") else ""
        lines.append(
            f"| {title} | {batch} | {1e3 * row['seconds']:.2f} | {low:.2f}-{high:.2f} "
            f"| {tokens_per_second(row):,.0f} | {mfu} | {memory} | {row['compile_seconds']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def tokens_per_second(row: Row) -> float:
    return row["batch_size"] * row["length"] / row["seconds"]


def mfu_of(row: Row) -> float:
    """Useful FLOPs by formula, of what the device can do at most."""
    return row["flops"] / row["seconds"] / PEAK


def fastest(rows: Collection[Row], contender: str) -> Row | None:
    """Of a contender, or of any way to compile it, the row with the most tokens per second."""
    own = [
        row
        for row in rows
        if row["contender"] in (contender, f"{contender}.compiled", f"{contender}.autotuned")
    ]
    return max(own, key=tokens_per_second, default=None)


def _ratios(rows: Collection[Row]) -> Iterator[str]:
    plain = fastest(rows, PLAIN)
    if plain is not None:
        yield (
            f"| plain masked-LM step, MFU of {PEAK / 1e12:.0f} TFLOP/s | >= .46, then >= .55 "
            f"| {mfu_of(plain):.3f} | {plain['batch_size']} |"
        )
    for title, over, under, goal in RATIOS:
        slow, fast = fastest(rows, over), fastest(rows, under)
        if slow is not None and fast is not None:
            ratio = tokens_per_second(fast) / tokens_per_second(slow)
            yield (
                f"| {title} | {goal} | {ratio:.2f} "
                f"| {slow['batch_size']} and {fast['batch_size']} |"
            )
