"""`das-jax importance`."""

import argparse
from pathlib import Path

from das_jax.commands.arguments import add_config, load, path

HELP = "Measures how important each unit of the model is to a corpus, or to its general knowledge."
EXAMPLE = "das-jax importance configs/quickstart.yaml --corpus acl --output acl.safetensors"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument(
        "--corpus", metavar="NAME", help="a domain, or the general text (default: the first domain)"
    )
    parser.add_argument(
        "--of",
        choices=["domain", "general"],
        help="knowledge of the corpus (the loss, the default) or general knowledge (proxy KL)",
    )
    parser.add_argument(
        "--published",
        type=path,
        metavar="DIR",
        help="convert the published code's three .npy files; --corpus and --of are ignored then",
    )
    parser.add_argument(
        "--output",
        type=path,
        default=Path("importance.safetensors"),
        metavar="FILE",
        help="the map file, FILE.safetensors; its heat map FILE.png is written beside it",
    )


def run(options: argparse.Namespace) -> None:
    config = load(options).config

    from das_jax.evaluation.importance_report import importance_table, is_heat_map, write_heat_map
    from das_jax.outputs import check_free
    from das_jax.training.console import Console
    from das_jax.training.distributed import connect, on_first_host
    from das_jax.training.measure_importance import convert_published, measure

    connect()
    console = Console(options.quiet)
    picture = options.output.with_suffix(".png")
    on_first_host(lambda: check_free(picture, is_heat_map))
    if options.published:
        measured = convert_published(config, console, options.published, options.output)
        for flag in ("corpus", "of"):
            if getattr(options, flag) is not None:
                console.log(f"--{flag} is ignored: --published measures nothing")
        console.log(
            f"{options.published}: shapes and numbers fit this model; whose knowledge it is cannot be "
            "checked, and there is no self-test, as the published code keeps no halves"
        )
    else:
        measured = measure(config, console, options.corpus, options.of or "domain", options.output)
    on_first_host(lambda: write_heat_map(picture, measured.importance))
    console.rich.print(
        importance_table(measured.importance, measured.raw.mean, measured.raw.standard_error)
    )
    for kind, rho in measured.correlations.items():
        console.log(f"self-test: the two halves of the sample correlate at {rho:.2f} ({kind})")
    if measured.warning:
        console.log(f"warning: {measured.warning}")
    console.log(f"{options.output} and {picture} written")
