"""`das-jax finetune`."""

import argparse

from das_jax.commands.arguments import add_config, load, path, path_or_name

HELP = "Trains classifiers of one end task, a seed each, on one model, and tests them."
EXAMPLE = (
    "das-jax finetune configs/quickstart.yaml --task acl_roles --checkpoint runs/quickstart/03-tweets "
    "--output classifier"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument("--task", required=True, metavar="NAME", help="one of evaluation.tasks")
    parser.add_argument(
        "--checkpoint",
        type=path_or_name,
        metavar="MODEL",
        help="a stage of a run, a HuggingFace directory or a hub name (default: model.path)",
    )
    parser.add_argument(
        "--output", type=path, metavar="DIR", help="write a classifier there, for HuggingFace"
    )


def run(options: argparse.Namespace) -> None:
    config = load(options).config

    from das_jax.evaluation.classifiers import finetune_one
    from das_jax.evaluation.finetuned_table import finetuned_table
    from das_jax.training.console import Console
    from das_jax.training.distributed import connect

    connect()
    console = Console(options.quiet)
    task, finetuned = finetune_one(
        config, console, options.task, options.checkpoint, options.output
    )
    console.rich.print(finetuned_table(task, finetuned))
    if options.output is not None:
        console.log(f"{options.output} written")
