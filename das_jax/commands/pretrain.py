"""`das-jax pretrain`."""

import argparse
from pathlib import Path

from das_jax.commands.arguments import add_config, load
from das_jax.errors import UserError

HELP = (
    "Learns the domains of a configuration one after the other; killed, the same command goes on."
)
EXAMPLE = "das-jax pretrain configs/quickstart.yaml --method.name=naive --output_dir=runs/naive"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)


def run(options: argparse.Namespace) -> None:
    resolved = load(options)
    config, origins = resolved.config, resolved.origins
    if config.seeds is not None and origins["seed"] == "command line":
        raise UserError(
            f"--seed={config.seed} means nothing beside seeds ({origins['seeds.0']}), which take its place; "
            f"give --seeds=[{config.seed}], or --seeds=null to have one run with --seed"
        )

    from das_jax.evaluation.inputs import check_inputs
    from das_jax.evaluation.report import write_report
    from das_jax.evaluation.score_table import heldout_table
    from das_jax.evaluation.scores import RunScores
    from das_jax.evaluation.terminal_tables import score_table
    from das_jax.training.console import Console
    from das_jax.training.distributed import connect
    from das_jax.training.pretrain import configurations, pretrain

    connect()
    console = Console(options.quiet)
    for each in configurations(config):
        if config.seeds is not None:
            console.log(f"seed {each.seed}, in {each.output_dir}")
        scores, unit = pretrain(each, console, options.interruption, write_report, check_inputs)
        measured = RunScores(
            *(Path(each.output_dir), each, tuple(scores), scores, {}, {}), unit=unit
        )
        console.rich.print(score_table(heldout_table((measured,))))
