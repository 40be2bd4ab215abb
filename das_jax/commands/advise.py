"""`das-jax advise`."""

import argparse
import shlex
from pathlib import Path

from das_jax.commands.arguments import add_config, load, path, positive

HELP = (
    "Says which method, learning rate and share of general or replayed text suit a model and its texts, "
    "after short probe runs; killed, the same command goes on."
)
EXAMPLE = "das-jax advise configs/quickstart.yaml --minutes=20 --forget=0.05"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument(
        "--minutes", type=positive, metavar="M", help="what all probes may take on this machine"
    )
    budget.add_argument(
        "--flops", type=positive, metavar="F", help="the same in useful FLOPs, such as 1e16"
    )
    parser.add_argument(
        "--forget",
        type=positive,
        metavar="NATS",
        help="a promise: the loss on general text may rise by so much; the cheapest point that keeps it",
    )
    parser.add_argument(
        "--candidates",
        type=path,
        metavar="FILE",
        help="what is tried; plain training, merging and replay if absent",
    )
    parser.add_argument(
        "--output",
        type=path,
        metavar="DIR",
        help="where probes go (default: output_dir with -advice)",
    )
    parser.add_argument(
        "--topology",
        metavar="NAME",
        help="plan the recommended run for this TPU, too, such as v5e:2x4",
    )


def run(options: argparse.Namespace) -> None:
    config = load(options).config

    from das_jax.advising.advise import advice_table, advise, price
    from das_jax.advising.budget import Budget
    from das_jax.advising.candidates import beside, read_candidates
    from das_jax.training.console import Console
    from das_jax.training.distributed import connect

    candidates = read_candidates(options.candidates, config)
    directory = options.output or Path(f"{Path(config.output_dir)}-advice").expanduser()
    budget = Budget(options.minutes, options.flops)
    connect()
    console = Console(options.quiet)
    advice = advise(
        config, candidates, budget, options.forget, directory, console, options.interruption
    )
    console.rich.print(advice_table(advice))
    for sentence in (*advice.sentences, price(advice)):
        console.log(sentence)
    recommended = directory / "recommended.yaml"
    overlays = [*options.overlays, recommended]
    overrides = beside(options.overrides, advice.settings)
    arguments = [str(options.config), *(f"--with={each}" for each in overlays), *overrides]
    console.log(f"{recommended} written; das-jax pretrain {shlex.join(arguments)}")
    if options.topology:
        from das_jax.config.load import load_config
        from das_jax.planning import plan_report

        whole = load_config(options.config, overrides, overlays)
        plan_report.report(whole.config, options.topology, directory / "plan.json")
