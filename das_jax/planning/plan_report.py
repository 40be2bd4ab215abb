"""A plan as a person reads it, and as a file."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from das_jax.config.schema import Config
from das_jax.files import write_json
from das_jax.outputs import check_free, creating
from das_jax.planning.compiled import TooLarge
from das_jax.planning.plan import Phase, Plan, plan

GIB = 2**30
FORMAT = "das_jax plan 1"
SMALL_SHARE = 0.01
"""Of the time, below which a part is not shown."""


def report(config: Config, topology_name: str, json_file: Path | None) -> None:
    """Plans a run, prints the plan and writes its figures.

    Args:
      config: the configuration.
      topology_name: such as `v5e:2x4`.
      json_file: for the figures; a run that does not fit leaves `fits: false` and the reason there.

    Raises:
      UserError: see `plan`.
    """
    if json_file is not None:
        check_figures(json_file)
    console = Console(soft_wrap=True, highlight=False)
    try:
        planned = plan(config, topology_name, console.print)
    except TooLarge as error:
        if json_file is not None:
            reason = {"topology": topology_name, "fits": False, "reason": str(error)}
            write_figures(json_file, reason)
        raise
    console.print(render(planned))
    if json_file is not None:
        write_figures(json_file, planned.as_json())


def check_figures(path: Path) -> None:
    """Raises UserError unless `write_figures` can write there."""
    check_free(path, _is_plan)


def write_figures(path: Path, figures: dict[str, Any]) -> None:
    """Writes the figures of a plan or a sweep as JSON; they replace older ones, and nothing else."""
    with creating(path, _is_plan) as temporary:
        write_json(temporary, {"format": FORMAT, **figures})


def _is_plan(path: Path) -> bool:
    try:
        return json.loads(path.read_text(encoding="utf-8"))["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def render(plan: Plan) -> Group:
    """Three tables: the programs, where the train step's time goes, and the run."""
    return Group(_programs(plan), _parts(plan), _run(plan), Text(plan.basis))


def _programs(plan: Plan) -> Table:
    table = Table(title=f"One run of each program on one chip of {plan.topology.name}")
    table.add_column("")
    for phase in plan.phases:
        table.add_column(phase.program.name, justify="right")
    facts = [_facts(plan, phase) for phase in plan.phases]
    for label in dict.fromkeys(label for fact in facts for label in fact):
        table.add_row(label, *(fact.get(label, "") for fact in facts))
    return table


def _facts(plan: Plan, phase: Phase) -> dict[str, str]:
    cost, program = phase.estimate, phase.program
    useful = program.flops / plan.num_devices
    low, mid, high = (f"{1000 * seconds:.3g}" for seconds in phase.seconds)
    collectives = {
        kind: f"{count:,}, {cost.collective_bytes[kind] / 1e6:,.3g} MB"
        for kind, count in cost.collectives.items()
    }
    return {
        f"peak HBM, of {plan.topology.chip.hbm / GIB:.2f} GiB": f"{phase.peak_bytes / GIB:.2f}",
        "useful TFLOP": f"{useful / 1e12:.3g}",
        "compiled / useful FLOP": f"{cost.flops / useful:.2f}",
        "HBM traffic, GB": f"{(cost.hbm_bytes + cost.prefetched_bytes) / 1e9:.3g}",
        **collectives,
        "estimated ms": mid,
        "    range": f"{low} to {high}",
        "estimated MFU": f"{plan.mfu(phase):.2f}",
        "estimated tokens/s, all chips": f"{plan.tokens_per_second(phase):,.0f}",
        "runs": f"{program.runs:,}",
    }


def _parts(plan: Plan) -> Table:
    table = Table(title="Where the train step's time goes, estimated")
    table.add_column("part")
    table.add_column("ms", justify="right")
    table.add_column("share", justify="right")
    parts = plan.phases[0].estimate.largest_parts()
    total = sum(seconds for _, seconds in parts)
    for part, seconds in parts:
        if (share := seconds / total) >= SMALL_SHARE:
            table.add_row(part, f"{1000 * seconds:.3g}", f"{share:.0%}")
    return table


def _run(plan: Plan) -> Table:
    low, mid, high = plan.hours
    chips = plan.topology.num_chips
    table = Table(title="The whole run, estimated", show_header=False)
    table.add_row("hours", f"{mid:.3g} ({low:.3g} to {high:.3g})")
    table.add_row("chip-hours", f"{mid * chips:.3g} ({low * chips:.3g} to {high * chips:.3g})")
    return table
