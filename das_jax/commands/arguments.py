"""What the arguments of several verbs have in common."""

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from das_jax.errors import UserError, shown
from das_jax.paths import unusable

if TYPE_CHECKING:
    from das_jax.config.load import Resolved


class Verb(Protocol):
    """A file of this directory.

    Attributes:
      HELP: what it does, in a sentence.
      EXAMPLE: a command that can be tried.
    """

    __name__: str
    HELP: str
    EXAMPLE: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Those that it reads."""

    def run(self, options: argparse.Namespace) -> None:
        """Does it.

        Args:
          options: its arguments; `overrides`, the settings given as --key=value; and `interruption`, which
            knows whether somebody asks it to stop.
        """


def path(text: str) -> Path:
    """A path on this machine; a shell leaves the ~ of --output=~/x to the program."""
    if reason := unusable(text):
        raise UserError(f"the path {shown(text)!r} {reason}")
    return Path(text).expanduser()


def path_or_name(text: str) -> str:
    """A path on this machine, or the name of a model on the hub."""
    return str(path(text)) if text.startswith("~") or unusable(text) else text


def positive(text: str) -> float:
    """A number above zero."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise UserError(f"{shown(text)} is no number above zero")
    return value


def add_config(
    parser: argparse.ArgumentParser, help: str = "a YAML file", overlays: bool = True
) -> None:
    """Of a verb that works for long: the configuration, files over it, settings, and how it is watched."""
    parser.add_argument("config", type=path, metavar="CONFIG", help=help)
    if overlays:
        add_overlays(parser)
    add_quiet(parser)
    parser.usage = f"{parser.prog} CONFIG [options] [--key=value ...]"


def add_optional_config(parser: argparse.ArgumentParser, help: str) -> None:
    """Of a verb that has something to show without one, too."""
    parser.add_argument("config", type=path, nargs="?", metavar="CONFIG", help=help)
    add_overlays(parser)


def add_overlays(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--with",
        dest="overlays",
        action="append",
        default=[],
        type=path,
        metavar="FILE",
        help="a YAML file of settings laid over CONFIG, such as configs/methods/ewc.yaml; may be given "
        "again",
    )


def add_quiet(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quiet", action="store_true", help="plain lines, no progress bar")


def load(options: argparse.Namespace) -> "Resolved":
    """The configuration; before what is heavy is imported, so that a mistake is answered at once."""
    from das_jax.config.load import load_config

    return load_config(options.config, options.overrides, options.overlays)
