"""A sweep as a person reads it, and as a file."""

from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from das_jax.config.schema import Config
from das_jax.errors import UserError
from das_jax.planning.plan_report import check_figures, write_figures
from das_jax.planning.sweep import Candidate, Row, Sweep, depths, sweep
from das_jax.planning.topology import open_topology
from das_jax.training.console import Console

GIB = 2**30
MARK = "->"


def report(config: Config, topology_name: str, json_file: Path | None) -> None:
    """Sweeps, prints the candidates and the one to take, and writes all figures.

    Args:
      config: the configuration.
      topology_name: such as `v5e:2x4`.
      json_file: for the figures.

    Raises:
      UserError: see `sweep`; or no candidate fits.
    """
    if json_file is not None:
        check_figures(json_file)
    topology = open_topology(topology_name)  # Before anything, the console too, asks for devices.
    console = Console()
    found = sweep(config, topology, console)
    console.rich.print(render(found))
    if json_file is not None:
        write_figures(json_file, as_json(found))
    if found.recommended is None:
        raise UserError(
            f"no candidate fits {topology_name}; lower data.length, lower training.batch_size or raise "
            "training.accumulate until a smaller batch fits, or take a topology of more or larger chips"
        )


def render(sweep: Sweep) -> Group:
    """The table of candidates, what to add to the command line, and what the figures are."""
    advice = [Text(sentence) for sentence in _advice(sweep)]
    return Group(_candidates(sweep), *advice, Text(sweep.basis))


def _candidates(sweep: Sweep) -> Table:
    table = Table(title=f"One train step on {sweep.topology.name}, estimated")
    for column in ("", "batch size", "per chip", "remat", "mesh.state"):
        table.add_column(
            column, justify="right" if column in ("batch size", "per chip") else "left"
        )
    hbm = f"{sweep.topology.chip.hbm / GIB:.2f}"
    for column in (f"peak GiB of {hbm}", "ms", "range", "tokens/s, all chips", "MFU", "fits"):
        table.add_column(column, justify="right")
    for row in sweep.by_speed:
        settings = row.candidate
        table.add_row(
            MARK if row is sweep.recommended else "",
            f"{settings.batch_size:,}",
            f"{_per_chip(sweep, settings):g}",
            settings.remat,
            settings.state,
            *_figures(sweep, row),
        )
    return table


def _figures(sweep: Sweep, row: Row) -> tuple[str, ...]:
    if row.step is None:
        return ("more", "", "", "", "", "no")
    peak = f"{row.step.peak_bytes / GIB:.2f}"
    if not sweep.fits(row):
        return (peak, "", "", "", "", "no")
    low, mid, high = (f"{1000 * seconds:.3g}" for seconds in sweep.seconds(row.step))
    speed, mfu = sweep.tokens_per_second(row, row.step), sweep.mfu(row, row.step)
    return (peak, mid, f"{low} to {high}", f"{speed:,.0f}", f"{mfu:.2f}", "yes")


def _per_chip(sweep: Sweep, candidate: Candidate) -> float:
    return candidate.batch_size / sweep.num_devices * sweep.topology.chip.per_chip


def _advice(sweep: Sweep) -> list[str]:
    best, same_size = sweep.recommended, sweep.recommended_at_batch_size
    if best is None:
        return []
    sentences = [f"{MARK} recommended: {_overrides(sweep, best)}"]
    if best is not same_size:
        sentences.append(
            "A changed batch size changes the training itself, not only its speed. "
            + (
                f"At the configured {sweep.config.training.batch_size}: {_overrides(sweep, same_size)}"
                if same_size
                else f"At the configured {sweep.config.training.batch_size} nothing fits."
            )
        )
    return sentences


def _overrides(sweep: Sweep, row: Row) -> str:
    return " ".join(row.candidate.overrides(sweep.config)) or "the configuration as it is"


def as_json(sweep: Sweep) -> dict[str, Any]:
    """All candidates, the fastest first; FLOPs and bytes are those of one step on one device."""
    best, same_size = sweep.recommended, sweep.recommended_at_batch_size
    return {
        "topology": sweep.topology.name,
        "chips": sweep.topology.num_chips,
        "layers": sweep.num_layers,
        "compiled_layers": list(depths(sweep.num_layers)),
        "basis": sweep.basis,
        "recommended": best and best.candidate.overrides(sweep.config),
        "recommended_at_configured_batch_size": same_size
        and same_size.candidate.overrides(sweep.config),
        "rows": [
            {
                "recommended": row is best,
                "training.batch_size": row.candidate.batch_size,
                "batch_size_per_chip": _per_chip(sweep, row.candidate),
                "model.remat": row.candidate.remat,
                "mesh.state": row.candidate.state,
                "overrides": row.candidate.overrides(sweep.config),
                "fits": sweep.fits(row),
                "flops_useful": row.flops / sweep.num_devices,
                **_json_figures(sweep, row),
            }
            for row in sweep.by_speed
        ],
    }


def _json_figures(sweep: Sweep, row: Row) -> dict[str, Any]:
    """Of a step that fits at least when the model is cut short."""
    if row.step is None:
        return {"reason": "the compiler finds no way to fit it, even with the fewer layers"}
    cost = row.step.cost
    return {
        "peak_hbm_gib": row.step.peak_bytes / GIB,
        "flops_compiled": cost.flops,
        "hbm_bytes": cost.hbm_bytes + cost.prefetched_bytes,
        "collective_bytes": dict(cost.collective_bytes),
        "estimated_step_ms": [1000 * seconds for seconds in sweep.seconds(row.step)],
        "estimated_mfu": sweep.mfu(row, row.step),
        "tokens_per_second": sweep.tokens_per_second(row, row.step),
    }
