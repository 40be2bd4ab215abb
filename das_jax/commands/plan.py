"""`das-jax plan`."""

import argparse

from das_jax.commands.arguments import add_overlays, load, path

HELP = (
    "Compiles a run for a TPU that need not be there: memory, FLOPs, and estimated times; with --sweep, "
    "which settings suit it."
)
EXAMPLE = "das-jax plan configs/das_roberta_base.yaml --topology v5e:2x4 --sweep --json sweep.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=path, metavar="CONFIG", help="a YAML file")
    add_overlays(parser)
    parser.add_argument("--topology", required=True, metavar="NAME", help="such as v5e:2x4")
    parser.add_argument(
        "--sweep",
        action="store_true",
        help="try batch sizes, remat policies and mesh.state, each on 2 and 4 of the model's layers, and "
        "recommend one",
    )
    parser.add_argument("--json", type=path, metavar="FILE", help="write the figures there too")


def run(options: argparse.Namespace) -> None:
    config = load(options).config

    from das_jax.planning import plan_report, sweep_report

    report_of = sweep_report.report if options.sweep else plan_report.report
    report_of(config, options.topology, options.json)
