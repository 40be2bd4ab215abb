"""`das-jax evaluate`."""

import argparse

from das_jax.commands.arguments import add_quiet, path
from das_jax.commands.report import show

HELP = "Measures the models of a run on end tasks, facts and the like; what is done already is skipped."
EXAMPLE = "das-jax evaluate runs/quickstart"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=path, metavar="RUN", help="the output_dir of a run")
    parser.add_argument(
        "--tasks",
        type=path,
        metavar="CONFIG",
        help="take what is measured, evaluation.tasks and the like, from this configuration, not the run's",
    )
    add_quiet(parser)


def run(options: argparse.Namespace) -> None:
    from das_jax.config.load import load_config

    tasks = load_config(options.tasks).config.evaluation if options.tasks else None

    from das_jax.evaluation.evaluate import evaluate
    from das_jax.training.console import Console
    from das_jax.training.distributed import connect, on_first_host

    connect()
    evaluate(options.run, tasks, Console(options.quiet))
    on_first_host(lambda: show([options.run], options.run / "report"))
