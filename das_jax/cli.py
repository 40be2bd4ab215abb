"""The command line: one verb per function."""

import argparse
import difflib
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TextIO

import das_jax
from das_jax.errors import UserError, shown
from das_jax.paths import unusable
from das_jax.training.interruption import Interrupted, Interruption, status

if TYPE_CHECKING:  # What is heavy is imported by the verb that needs it.
    from das_jax.config.load import Resolved

DESCRIPTION = "Adapts a masked language model to one domain after another without forgetting."


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
        options.verb(options)
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
        verb = options.verb.__name__
        hint = f"did you mean {near[0]}?" if near else f"das-jax {verb} takes no settings"
        return f"{shown(word)} is not understood; {hint}"
    if stray or valueless:
        instead = f", not as {shown(valueless[0])} VALUE" if valueless else ""
        word = shown((stray or valueless)[0])
        return f"{word} is not understood; settings are given as --key=value{instead}"
    return None


def _path(text: str) -> Path:
    """A path on this machine; a shell leaves the ~ of --output=~/x to the program."""
    if reason := unusable(text):
        raise UserError(f"the path {shown(text)!r} {reason}")
    return Path(text).expanduser()


def _positive(text: str) -> float:
    """A number above zero."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise UserError(f"{shown(text)} is no number above zero")
    return value


def _model(text: str) -> str:
    """A path on this machine, or the name of a model on the hub."""
    return str(_path(text)) if text.startswith("~") or unusable(text) else text


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="das-jax", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"das-jax {das_jax.__version__}")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def add(
        verb: Callable[[argparse.Namespace], None], help: str, example: str
    ) -> argparse.ArgumentParser:
        sub = verbs.add_parser(
            verb.__name__,
            help=help,
            description=help,
            epilog=f"example: {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        sub.set_defaults(verb=verb)
        return sub

    def add_overlays(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--with",
            dest="overlays",
            action="append",
            default=[],
            type=_path,
            metavar="FILE",
            help="a YAML file of settings laid over CONFIG, such as configs/methods/ewc.yaml; may be given "
            "again",
        )

    def add_config(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("config", type=_path, metavar="CONFIG", help="a YAML file")
        add_overlays(sub)
        sub.add_argument("--quiet", action="store_true", help="plain lines, no progress bar")
        sub.usage = f"das-jax {sub.prog.split()[-1]} CONFIG [options] [--key=value ...]"

    add_config(
        add(
            prepare,
            "Turns the corpora of a configuration into token chunks, once; with data.beam, on many machines.",
            "das-jax prepare configs/quickstart.yaml --data.length=256",
        )
    )
    add_config(
        add(
            pretrain,
            "Learns the domains of a configuration one after the other; killed, the same command goes on.",
            "das-jax pretrain configs/quickstart.yaml --method.name=naive --output_dir=runs/naive",
        )
    )
    sub = add(
        compare,
        "Learns the same domains with several methods or settings, and shows them beside each other; killed, "
        "the same command goes on.",
        "das-jax compare configs/comparisons/quickstart.yaml --budget=flop",
    )
    sub.add_argument("config", type=_path, metavar="CONFIG", help="the YAML file of a comparison")
    sub.add_argument("--quiet", action="store_true", help="plain lines, no progress bar")
    sub.usage = "das-jax compare CONFIG [options] [--key=value ...]"
    sub = add(
        advise,
        "Says which method, learning rate and share of general or replayed text suit a model and its texts, "
        "after short probe runs; killed, the same command goes on.",
        "das-jax advise configs/quickstart.yaml --minutes=20 --forget=0.05",
    )
    add_config(sub)
    budget = sub.add_mutually_exclusive_group(required=True)
    budget.add_argument(
        "--minutes", type=_positive, metavar="M", help="what all probes may take on this machine"
    )
    budget.add_argument(
        "--flops", type=_positive, metavar="F", help="the same in useful FLOPs, such as 1e16"
    )
    sub.add_argument(
        "--forget",
        type=_positive,
        metavar="NATS",
        help="a promise: the loss on general text may rise by so much; the cheapest point that keeps it",
    )
    sub.add_argument(
        "--candidates",
        type=_path,
        metavar="FILE",
        help="what is tried; plain training, merging and replay if absent",
    )
    sub.add_argument(
        "--output",
        type=_path,
        metavar="DIR",
        help="where probes go (default: output_dir with -advice)",
    )
    sub.add_argument(
        "--topology",
        metavar="NAME",
        help="plan the recommended run for this TPU, too, such as v5e:2x4",
    )
    sub = add(
        importance,
        "Measures how important each unit of the model is to a corpus, or to its general knowledge.",
        "das-jax importance configs/quickstart.yaml --corpus acl --output acl.safetensors",
    )
    add_config(sub)
    sub.add_argument(
        "--corpus", metavar="NAME", help="a domain, or the general text (default: the first domain)"
    )
    sub.add_argument(
        "--of",
        choices=["domain", "general"],
        help="knowledge of the corpus (masked-LM loss, the default) or general knowledge (proxy KL)",
    )
    sub.add_argument(
        "--published",
        type=_path,
        metavar="DIR",
        help="convert the published code's three .npy files; --corpus and --of are ignored then",
    )
    sub.add_argument(
        "--output",
        type=_path,
        default=Path("importance.safetensors"),
        metavar="FILE",
        help="the map file, FILE.safetensors; its heat map FILE.png is written beside it",
    )
    sub = add(
        finetune,
        "Trains classifiers of one end task, a seed each, on one model, and tests them.",
        "das-jax finetune configs/quickstart.yaml --task acl_roles --checkpoint runs/quickstart/03-tweets "
        "--output classifier",
    )
    add_config(sub)
    sub.add_argument("--task", required=True, metavar="NAME", help="one of evaluation.tasks")
    sub.add_argument(
        "--checkpoint",
        type=_model,
        metavar="MODEL",
        help="a stage of a run, a HuggingFace directory or a hub name (default: model.path)",
    )
    sub.add_argument(
        "--output", type=_path, metavar="DIR", help="write a classifier there, for HuggingFace"
    )
    sub = add(
        evaluate,
        "Measures the models of a run on end tasks and facts; what is done already is skipped.",
        "das-jax evaluate runs/quickstart",
    )
    sub.add_argument("run", type=_path, metavar="RUN", help="the output_dir of a run")
    sub.add_argument(
        "--tasks",
        type=_path,
        metavar="CONFIG",
        help="take evaluation.tasks and evaluation.cloze from this configuration, not from the run's",
    )
    sub.add_argument("--quiet", action="store_true", help="plain lines, no progress bar")
    sub = add(
        report,
        "Shows a run, or compares several: tables here, a page with plots, and CSV files.",
        "das-jax report runs/quickstart runs/naive --output comparison",
    )
    sub.add_argument(
        "runs",
        type=_path,
        nargs="+",
        metavar="RUN",
        help="an output_dir of das-jax pretrain, or a directory with one per seed (seed-0, seed-1, ...); "
        "all others are compared with the first",
    )
    sub.add_argument(
        "--output",
        type=_path,
        metavar="DIR",
        help="where index.html and the CSV files go (default: RUN/report, or report for several runs)",
    )
    sub = add(
        export,
        "Writes a checkpoint as a HuggingFace directory.",
        "das-jax export runs/quickstart/02-reviews reviews-model",
    )
    sub.add_argument(
        "source", type=_path, help="a run, a stage of it, or a stage's checkpoints/STEP"
    )
    sub.add_argument("target", type=_path, help="the directory to write")
    sub.add_argument(
        "--domain",
        metavar="NAME",
        help="the model that serves this domain after that checkpoint (default: what the stage left)",
    )
    sub.add_argument(
        "--graft",
        action="store_true",
        help="what the method put into the model, beside its base: in peft's format for lora",
    )
    sub = add(
        plan,
        "Compiles a run for a TPU that need not be there: memory, FLOPs, and estimated times; with --sweep, "
        "which settings suit it.",
        "das-jax plan configs/das_roberta_base.yaml --topology v5e:2x4 --sweep --json sweep.json",
    )
    sub.add_argument("config", type=_path, metavar="CONFIG", help="a YAML file")
    add_overlays(sub)
    sub.add_argument("--topology", required=True, metavar="NAME", help="such as v5e:2x4")
    sub.add_argument(
        "--sweep",
        action="store_true",
        help="try batch sizes, remat policies and mesh.state, each on 2 and 4 of the model's layers, and "
        "recommend one",
    )
    sub.add_argument("--json", type=_path, metavar="FILE", help="write the figures there too")
    sub = add(
        methods,
        "Lists every method: its kind, its paper, and what it costs beside plain training.",
        "das-jax methods configs/quickstart.yaml",
    )
    sub.add_argument(
        "config",
        type=_path,
        nargs="?",
        metavar="CONFIG",
        help="a YAML file, whose model and settings are counted; without one: roberta-base",
    )
    add_overlays(sub)
    sub = add(
        config,
        "Shows every setting, its value and where the value came from.",
        "das-jax config configs/quickstart.yaml --preset=paper",
    )
    sub.add_argument(
        "config",
        type=_path,
        nargs="?",
        metavar="CONFIG",
        help="a YAML file; without one: all settings there are",
    )
    add_overlays(sub)
    return parser


def _load(options: argparse.Namespace) -> "Resolved":
    """Before what is heavy is imported, so that a mistake is answered at once."""
    from das_jax.config.load import load_config

    return load_config(options.config, options.overrides, options.overlays)


def prepare(options: argparse.Namespace) -> None:
    config = _load(options).config

    from das_jax.training.console import Console
    from das_jax.training.workspace import open_workspace

    console = Console(options.quiet)
    for name, corpus in open_workspace(config, console).corpora().items():
        console.log(
            f"{name}: {corpus.documents:,} documents, {corpus.tokens:,} tokens, "
            f"{len(corpus.train):,} chunks for training, {len(corpus.heldout):,} held out, "
            f"in {corpus.directory}"
        )


def pretrain(options: argparse.Namespace) -> None:
    resolved = _load(options)
    config, origins = resolved.config, resolved.origins
    if config.seeds is not None and origins["seed"] == "command line":
        raise UserError(
            f"--seed={config.seed} means nothing beside seeds ({origins['seeds.0']}), which take its place; "
            f"give --seeds=[{config.seed}], or --seeds=null to have one run with --seed"
        )

    from das_jax.evaluation.evaluate import check_inputs
    from das_jax.evaluation.report import write_report
    from das_jax.evaluation.score_table import heldout_table
    from das_jax.evaluation.scores import RunScores
    from das_jax.evaluation.terminal_tables import score_table
    from das_jax.training.console import Console
    from das_jax.training.distributed import connect
    from das_jax.training.pretrain import configurations
    from das_jax.training.pretrain import pretrain as run

    connect()
    console = Console(options.quiet)
    for each in configurations(config):
        if config.seeds is not None:
            console.log(f"seed {each.seed}, in {each.output_dir}")
        scores = run(each, console, options.interruption, write_report, check_inputs)
        measured = RunScores(Path(each.output_dir), each, tuple(scores), scores, {}, {})
        console.rich.print(score_table(heldout_table((measured,))))


def compare(options: argparse.Namespace) -> None:
    from das_jax.comparing.file import read_comparison

    comparison = read_comparison(options.config, options.overrides)

    from das_jax.comparing.compare import compare as run
    from das_jax.training.console import Console
    from das_jax.training.distributed import connect

    connect()
    run(comparison, Console(options.quiet), options.interruption)


def advise(options: argparse.Namespace) -> None:
    config = _load(options).config

    from das_jax.advising.advise import advice_table, price
    from das_jax.advising.advise import advise as run
    from das_jax.advising.budget import Budget
    from das_jax.advising.candidates import read_candidates
    from das_jax.training.console import Console
    from das_jax.training.distributed import connect

    candidates = read_candidates(options.candidates, config)
    directory = options.output or Path(f"{config.output_dir}-advice").expanduser()
    budget = Budget(options.minutes, options.flops)
    connect()
    console = Console(options.quiet)
    advice = run(
        config, candidates, budget, options.forget, directory, console, options.interruption
    )
    console.rich.print(advice_table(advice))
    for sentence in (*advice.sentences, price(advice)):
        console.log(sentence)
    recommended = directory / "recommended.yaml"
    console.log(f"{recommended} written; das-jax pretrain {options.config} --with={recommended}")
    if options.topology:
        from das_jax.config.load import load_config
        from das_jax.planning import plan_report

        whole = load_config(options.config, options.overrides, [*options.overlays, recommended])
        plan_report.report(whole.config, options.topology, directory / "plan.json")


def importance(options: argparse.Namespace) -> None:
    config = _load(options).config

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


def finetune(options: argparse.Namespace) -> None:
    config = _load(options).config

    from das_jax.evaluation.evaluate import finetune_one
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


def evaluate(options: argparse.Namespace) -> None:
    from das_jax.config.load import load_config

    tasks = load_config(options.tasks).config.evaluation if options.tasks else None

    from das_jax.evaluation.evaluate import evaluate as run
    from das_jax.training.console import Console
    from das_jax.training.distributed import connect, on_first_host

    connect()
    run(options.run, tasks, Console(options.quiet))
    on_first_host(lambda: _show([options.run], options.run / "report"))


def report(options: argparse.Namespace) -> None:
    several = len(options.runs) > 1
    directory = options.output or (Path() if several else options.runs[0]) / "report"
    if options.output or several:  # What is in a run is the run's.
        from das_jax.evaluation.report import check_directory

        check_directory(directory)
    _show(options.runs, directory)


def _show(runs: list[Path], directory: Path) -> None:
    """Prints the tables of runs, and writes their page."""
    from das_jax.evaluation.comparison import summarise_all
    from das_jax.evaluation.report import write_pages
    from das_jax.evaluation.terminal_tables import report_tables
    from das_jax.training.console import screen
    from das_jax.training.lost import lost
    from das_jax.training.run_directory import RunDirectory

    summaries = summarise_all(runs)
    page = write_pages(summaries, directory)
    console = screen()
    for summary in summaries:
        for scores in summary.runs:
            for sentence in lost(RunDirectory(scores.directory), scores.config):
                console.print(f"warning: {sentence}", markup=False)
            if scores.promise:
                console.print(f"{scores.directory}: {scores.promise}", markup=False)
    for table in report_tables(summaries):
        console.print(table)
    console.print(f"{page} written, and the same as CSV files beside it", markup=False)


def export(options: argparse.Namespace) -> None:
    from das_jax.training.export import export as run

    run(options.source, options.target, options.domain, graft=options.graft)


def plan(options: argparse.Namespace) -> None:
    config = _load(options).config

    from das_jax.planning import plan_report, sweep_report

    report_of = sweep_report.report if options.sweep else plan_report.report
    report_of(config, options.topology, options.json)


def methods(options: argparse.Namespace) -> None:
    from das_jax.planning.price import methods_table, usual_config

    config = _load(options).config if options.config else usual_config()

    from das_jax.planning.architectures import find_architecture
    from das_jax.training.console import screen

    screen().print(methods_table(config, find_architecture(config)))


def config(options: argparse.Namespace) -> None:
    resolved = _load(options) if options.config else None

    from das_jax.config.show import render, render_settings
    from das_jax.training.console import screen

    screen().print(render(resolved) if resolved else render_settings())


if __name__ == "__main__":
    sys.exit(main())
