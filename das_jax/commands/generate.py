"""`das-jax generate`."""

import argparse
import sys
from pathlib import Path

from das_jax.commands.arguments import path, path_or_name
from das_jax.errors import UserError

HELP = "Writes what decoders say behind a prompt, one model after the other."
EXAMPLE = 'das-jax generate demo:smollm2-135m runs/decoder/02-law --prompt "The court held that" --tokens 40'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoints",
        type=path_or_name,
        nargs="+",
        metavar="CHECKPOINT",
        help="a stage of a run, a HuggingFace directory, or a hub or demo name; several are compared",
    )
    parser.add_argument(
        "--prompt",
        dest="prompts",
        action="append",
        metavar="TEXT",
        help="may be given again (default: every line of the standard input)",
    )
    parser.add_argument(
        "--chat",
        action="store_true",
        help="say it to an assistant, in the tokenizer's chat template, and write the answer",
    )
    parser.add_argument(
        "--tokens", type=int, default=100, metavar="N", help="write at most so many (default: 100)"
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        metavar="X",
        help="draw tokens, from all alike to the likeliest as it falls to 0, which draws none (default: 0)",
    )
    parser.add_argument(
        "--top_p",
        type=float,
        metavar="P",
        help="draw among the fewest tokens that have this probability together (default: 1, all)",
    )
    parser.add_argument(
        "--samples", type=int, metavar="N", help="texts drawn for each prompt (default: 1)"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="of what is drawn (default: 0)")
    parser.add_argument(
        "--cache_dir",
        type=path,
        default=Path("~/.cache/das_jax").expanduser(),
        metavar="DIR",
        help="data.cache_dir, where fetched models and compiled programs live (default: ~/.cache/das_jax)",
    )


def run(options: argparse.Namespace) -> None:
    prompts = options.prompts or _lines()
    drawing = {name: getattr(options, name) for name in ("top_p", "samples", "seed")}
    given = {name: value for name, value in drawing.items() if value is not None}
    if given and options.temperature == 0:
        raise UserError(
            f"--{next(iter(given))} says how tokens are drawn, and none are at temperature 0; give a "
            "--temperature, such as 0.8"
        )
    for name in ("tokens", "samples"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} is {value}; it must be 1 or more")
    samples = given.pop("samples", 1)

    from das_jax.evaluation.continuations import continuations, open_writer
    from das_jax.model.generation import Sampling
    from das_jax.training.compiled_programs import keep_compiled_programs

    sampling = Sampling(options.temperature, **given)
    keep_compiled_programs(options.cache_dir / "compiled", _note)
    for number, checkpoint in enumerate(options.checkpoints):
        writer = open_writer(checkpoint, options.cache_dir)
        for note in writer.notes:
            _note(f"{checkpoint}: {note}")
        texts = continuations(
            *(writer, prompts, options.tokens),
            asked=options.chat,
            sampling=sampling,
            samples=samples,
        )
        shown = [
            f"{prompt}\n\n{text}" if options.chat else f"{prompt}{text}"
            for prompt, own in zip(prompts, texts, strict=True)
            for text in own
        ]
        if len(options.checkpoints) > 1:
            print("\n" * (number > 0) + f"### {checkpoint}\n")
        print("\n\n".join(shown), flush=True)


def _lines() -> list[str]:
    """The prompts of the standard input."""
    found = [] if sys.stdin.isatty() else sys.stdin.read().splitlines()
    if prompts := [line for line in found if line.strip()]:
        return prompts
    raise UserError("there is no prompt; give --prompt TEXT, or one a line on the standard input")


def _note(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)
