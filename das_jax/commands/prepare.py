"""`das-jax prepare`."""

import argparse

from das_jax.commands.arguments import add_config, load

HELP = "Turns the corpora of a configuration into token chunks, once; with data.beam, on many machines."
EXAMPLE = "das-jax prepare configs/quickstart.yaml --data.length=256"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)


def run(options: argparse.Namespace) -> None:
    config = load(options).config

    from das_jax.training.console import Console
    from das_jax.training.workspace import open_workspace

    console = Console(options.quiet)
    for name, corpus in open_workspace(config, console).corpora().items():
        console.log(
            f"{name}: {corpus.documents:,} documents, {corpus.tokens:,} tokens, "
            f"{len(corpus.train):,} chunks for training, {len(corpus.heldout):,} held out, "
            f"in {corpus.directory}"
        )
