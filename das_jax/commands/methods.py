"""`das-jax methods`."""

import argparse

from das_jax.commands.arguments import add_optional_config, load

HELP = "Lists every method: its kind, its paper, and what it costs beside plain training."
EXAMPLE = "das-jax methods configs/quickstart.yaml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_optional_config(
        parser, "a YAML file, whose model and settings are counted; without one: roberta-base"
    )


def run(options: argparse.Namespace) -> None:
    given = load(options).config if options.config else None

    from das_jax.planning.architectures import find_architecture
    from das_jax.planning.price import methods_table, usual_config
    from das_jax.training.console import screen

    config = given or usual_config()
    screen().print(methods_table(config, find_architecture(config)))
