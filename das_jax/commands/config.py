"""`das-jax config`."""

import argparse

from das_jax.commands.arguments import add_optional_config, load

HELP = "Shows every setting, its value and where the value came from."
EXAMPLE = "das-jax config configs/quickstart.yaml --preset=paper"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_optional_config(parser, "a YAML file; without one: all settings there are")


def run(options: argparse.Namespace) -> None:
    resolved = load(options) if options.config else None

    from das_jax.config.show import render, render_settings
    from das_jax.training.console import screen

    screen().print(render(resolved) if resolved else render_settings())
