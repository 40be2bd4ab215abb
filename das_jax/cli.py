"""The command line: from words to a verb, and from its errors to a sentence and an exit status."""

import argparse
import difflib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn, TextIO

import das_jax
from das_jax.commands import (
    advise,
    compare,
    config,
    evaluate,
    export,
    finetune,
    generate,
    importance,
    methods,
    plan,
    prepare,
    pretrain,
    report,
)
from das_jax.commands.arguments import Verb
from das_jax.errors import UserError, shown
from das_jax.training.interruption import Interrupted, Interruption, status

DESCRIPTION = "Adapts a masked language model to one domain after another without forgetting."
VERBS: tuple[Verb, ...] = (
    prepare,
    pretrain,
    compare,
    advise,
    importance,
    finetune,
    evaluate,
    generate,
    report,
    export,
    plan,
    methods,
    config,
)
"""In the order in which one needs them, which is that of the help."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a verb.

    Returns:
      The exit status: 0 if all went well or SIGTERM ended it in order, 2 for what the user can mend,
      130 after Ctrl-C.
    """
    interruption = Interruption()
    # The entry point gives no arguments: when it returns, the process ends.
    with interruption.watched(to_the_end=arguments is None):
        return _main(arguments, interruption)


def _main(arguments: Sequence[str] | None, interruption: Interruption) -> int:
    try:
        options = _parse(arguments)
        options.interruption = interruption
        options.verb.run(options)
    except UserError as error:
        _say(f"das-jax: {error}", sys.stderr)
        return 2
    except Interrupted as stopped:
        _say(str(stopped), sys.stdout)
        return status(interruption.requested)
    return 0


def _say(sentence: str, stream: TextIO) -> None:
    try:
        print(sentence, file=stream, flush=True)
    except OSError:  # Ctrl-C ended the other end of the pipe too, or the disk is full.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class _Parser(argparse.ArgumentParser):
    """Says in one sentence what is wrong, as everything else does, and not below a usage of ten lines."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"das-jax: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="das-jax", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"das-jax {das_jax.__version__}")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for verb in VERBS:
        sub = verbs.add_parser(
            _name(verb),
            help=verb.HELP,
            description=verb.HELP,
            epilog=f"example: {verb.EXAMPLE}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        sub.set_defaults(verb=verb)
        verb.add_arguments(sub)
    return parser


def _name(verb: Verb) -> str:
    """A verb is called as its file."""
    return verb.__name__.rpartition(".")[2]


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    options, overrides = parser.parse_known_args(arguments)
    if overrides and (why := _not_understood(overrides, options)):
        parser.exit(2, f"das-jax: {why}\n")
    changes = [*overrides, *map(str, getattr(options, "overlays", ()))]
    if changes and options.config is None:
        parser.exit(2, f"das-jax: {shown(changes[0])} changes a configuration, and none is given\n")
    options.overrides = overrides
    return options


def _not_understood(words: list[str], options: argparse.Namespace) -> str | None:
    """What is wrong with words that are no option of the verb; None if they are settings."""
    stray = [word for word in words if not word.startswith("--")]
    valueless = [word for word in words if word.startswith("--") and "=" not in word]
    if "config" not in options:
        word = (stray or words)[0]
        names = [f"--{name}" for name in vars(options)]
        near = difflib.get_close_matches(word.split("=")[0], names, n=1)
        hint = (
            f"did you mean {near[0]}?"
            if near
            else f"das-jax {_name(options.verb)} takes no settings"
        )
        return f"{shown(word)} is not understood; {hint}"
    if stray or valueless:
        instead = f", not as {shown(valueless[0])} VALUE" if valueless else ""
        word = shown((stray or valueless)[0])
        return f"{word} is not understood; settings are given as --key=value{instead}"
    return None


if __name__ == "__main__":
    sys.exit(main())
