"""A comparison from its file to its report; killed anywhere, the same command goes on."""

from collections.abc import Sequence
from pathlib import Path

from das_jax.comparing.cells import Cell, base_of, cells_of, orders_of, points_of, seeds_of
from das_jax.comparing.file import Comparison
from das_jax.comparing.report import Report, report_of, tables_of, write_page
from das_jax.comparing.run import Failure, run_cells
from das_jax.errors import UserError
from das_jax.training.console import Console
from das_jax.training.distributed import on_first_host
from das_jax.training.interruption import Interruption


def compare(comparison: Comparison, console: Console, interruption: Interruption) -> None:
    """Learns all cells, chooses a point of every system, and shows them beside each other.

    Raises:
      UserError: something in the files needs mending; or cells failed, after all else is shown.
      Interrupted: somebody asked it to stop; what is finished is kept.
    """
    cells = cells_of_comparison(comparison)
    orders, seeds = ({getattr(cell, each) for cell in cells} for each in ("order", "seed"))
    points = {cell.point.title for cell in cells}
    console.log(
        f"{comparison.path}: {len(comparison.systems)} systems, {len(points)} points, {len(orders)} orders, "
        f"{len(seeds)} seeds: {len(cells)} cells"
    )
    failures = run_cells(
        cells, console, interruption, comparison.output_dir, comparison.settings.keep
    )
    report = report_of_comparison(comparison, cells, failures)
    show(report, comparison.output_dir / "report", console)
    if failures:
        raise UserError(
            f"{len({failed.cell.point.title for failed in failures})} points failed and are left out: "
            f"{failures[0].cell.title} ({failures[0].reason}); mend that, then start the same command again"
        )


def cells_of_comparison(comparison: Comparison) -> list[Cell]:
    """All its runs, checked.

    Raises:
      UserError: something in the files needs mending.
    """
    base, points = base_of(comparison), points_of(comparison)
    orders, seeds = orders_of(comparison, base), seeds_of(comparison, base)
    return cells_of(points, orders, seeds, comparison.output_dir)


def report_of_comparison(
    comparison: Comparison, cells: Sequence[Cell], failures: Sequence[Failure]
) -> Report:
    """What is known of it now.

    Raises:
      UserError: no point is finished.
    """
    base = base_of(comparison)
    return report_of(
        cells,
        failures,
        title=comparison.path.stem,
        reference=comparison.reference,
        base=base,
        budget=comparison.settings.budget,
        orders=orders_of(comparison, base),
        seeds=seeds_of(comparison, base),
    )


def show(report: Report, directory: Path, console: Console) -> None:
    """Prints the tables, and writes the page."""
    page = on_first_host(lambda: str(write_page(report, directory)))
    for table in tables_of(report):
        console.rich.print(table)
    for warning in report.warnings:
        console.log(f"warning: {warning}")
    console.log(f"{page} written, and the same as CSV files beside it")
