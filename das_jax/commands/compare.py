"""`das-jax compare`."""

import argparse

from das_jax.commands.arguments import add_config

HELP = (
    "Learns the same domains with several methods or settings, and shows them beside each other; killed, "
    "the same command goes on."
)
EXAMPLE = "das-jax compare configs/comparisons/quickstart.yaml --budget=flop"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser, help="the YAML file of a comparison", overlays=False)


def run(options: argparse.Namespace) -> None:
    from das_jax.comparing.file import read_comparison

    comparison = read_comparison(options.config, options.overrides)

    from das_jax.comparing.compare import compare
    from das_jax.training.console import Console
    from das_jax.training.distributed import connect

    connect()
    compare(comparison, Console(options.quiet), options.interruption)
