"""`das-jax export`."""

import argparse

from das_jax.commands.arguments import path

HELP = "Writes a checkpoint as a HuggingFace directory."
EXAMPLE = "das-jax export runs/quickstart/02-reviews reviews-model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", type=path, help="a run, a stage of it, or a stage's checkpoints/STEP"
    )
    parser.add_argument("target", type=path, help="the directory to write")
    parser.add_argument(
        "--domain",
        metavar="NAME",
        help="the model that serves this domain after that checkpoint (default: what the stage left)",
    )
    parser.add_argument(
        "--graft",
        action="store_true",
        help="what the method put into the model, beside its base: in peft's format for lora",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "checkpoint", "bfloat16"),
        help="the type of the weights, checkpoint being that of the model the run began with (default: "
        "export.dtype of the run)",
    )


def run(options: argparse.Namespace) -> None:
    from das_jax.training.export import export

    export(options.source, options.target, options.domain, graft=options.graft, dtype=options.dtype)
