"""`das-jax report`."""

import argparse
from pathlib import Path

from das_jax.commands.arguments import path

HELP = "Shows a run, or compares several: tables here, a page with plots, and CSV files."
EXAMPLE = "das-jax report runs/quickstart runs/naive --output comparison"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs",
        type=path,
        nargs="+",
        metavar="RUN",
        help="an output_dir of das-jax pretrain, or a directory with one per seed (seed-0, seed-1, ...); "
        "all others are compared with the first",
    )
    parser.add_argument(
        "--output",
        type=path,
        metavar="DIR",
        help="where index.html and the CSV files go (default: RUN/report, or report for several runs)",
    )


def run(options: argparse.Namespace) -> None:
    several = len(options.runs) > 1
    directory = options.output or (Path() if several else options.runs[0]) / "report"
    if options.output or several:  # What is in a run is the run's.
        from das_jax.evaluation.report import check_directory

        check_directory(directory)
    show(options.runs, directory)


def show(runs: list[Path], directory: Path) -> None:
    """Prints the tables of runs, and writes their page."""
    from das_jax.evaluation.comparison import summarise_all
    from das_jax.evaluation.report import write_pages
    from das_jax.evaluation.terminal_tables import report_tables
    from das_jax.training.console import screen
    from das_jax.training.lost import lost
    from das_jax.training.run_directory import RunDirectory

    summaries = summarise_all(runs)
    page = write_pages(summaries, directory)
    console = screen()
    for summary in summaries:
        for scores in summary.runs:
            for sentence in lost(RunDirectory(scores.directory), scores.config):
                console.print(f"warning: {sentence}", markup=False)
            if scores.promise:
                console.print(f"{scores.directory}: {scores.promise}", markup=False)
    for table in report_tables(summaries):
        console.print(table)
    console.print(f"{page} written, and the same as CSV files beside it", markup=False)
