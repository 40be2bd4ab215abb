"""The page that shows runs to people: one file, which needs no other and no network."""

import itertools
import os
import re
from collections.abc import Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup

from das_jax.config.load import leaves
from das_jax.errors import UserError
from das_jax.evaluation import plots
from das_jax.evaluation.comparison import (
    last_scores,
    rank,
    rankings,
    relative_flops,
    samples_notes,
    summarise_all,
)
from das_jax.evaluation.csv_files import FILES, write_csv_files
from das_jax.evaluation.headline import headlines
from das_jax.evaluation.samples import read_samples, shown
from das_jax.evaluation.score_table import MEANINGS, MEASURES, SHADE, SHADES, TITLES, ScoreTable
from das_jax.evaluation.statistics import Estimate
from das_jax.evaluation.summary import Summary
from das_jax.evaluation.svg import Plot
from das_jax.files import write_text
from das_jax.training.run_directory import WHERE_NOT_WHAT, RunDirectory

PAGE = "index.html"
HEAD = re.compile(rb'<link rel="icon" href="data:,">\s<title>[^<]*: das_jax</title>')
"""What a page begins with, and hardly any other file."""

ABSENT = "\N{EN DASH}"


def write_report(run: Path) -> None:
    """Writes the page of one run, or of one run's seeds, into its directory."""
    write_pages(summarise_all([run]), run / "report")


def write_pages(summaries: Sequence[Summary], directory: Path) -> Path:
    """Writes the page of one run, or of several and their comparison, and the same as CSV files.

    Returns:
      Where the page is.
    """
    page = directory / PAGE
    write_text(page, render(summaries))  # First, as it says of the directory that it is a report.
    write_csv_files(summaries, directory)
    return page


def check_directory(directory: Path) -> None:
    """Raises UserError if a report would replace files there that are not a report's."""
    taken = [name for name in (PAGE, *FILES) if os.path.lexists(directory / name)]
    if taken and not _is_report(directory / PAGE):
        raise UserError(
            f"{directory} holds {', '.join(taken)}, and no report of das-jax; give another --output"
        )


def _is_report(page: Path) -> bool:
    """Whether a file is a page written by `write_pages`, of this version or an earlier one."""
    try:
        with page.open("rb") as file:
            return HEAD.search(file.read(1 << 16)) is not None
    except OSError:
        return False


def environment(*directories: Path) -> jinja2.Environment:
    """For templates of pages, which lie here or in other directories."""
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader([*directories, Path(__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    numbers = itertools.count(1)

    def draw(plot: Plot) -> Markup:
        return Markup(plot.numbered(next(numbers)))  # Made here, its text escaped by matplotlib.

    found.filters |= {"minus": minus, "sentence": sentence, "draw": draw}
    return found


def render(summaries: Sequence[Summary]) -> str:
    """The page as HTML."""
    return (
        environment()
        .get_template("report.html")
        .render(
            summaries=summaries,
            title=", ".join(summary.name for summary in summaries),
            changed=changed_settings(summaries),
            plots=plots,
            rankings=rankings(summaries),
            rank=rank,
            headlines=headlines(summaries),
            last_scores=last_scores,
            relative_flops=relative_flops,
            samples_notes=samples_notes,
            shade=shade,
            colour=colour,
            share_shade=share_shade,
            settings=settings_that_matter,
            versions=versions,
            samples=samples_of,
            yaml=yaml_text,
            TITLES=TITLES,
            MEANINGS=MEANINGS,
            MEASURES=MEASURES,
            SHADES=SHADES,
            SHADE=SHADE,
        )
    )


def minus(text: object) -> str:
    """Numbers with a minus sign as wide as the plus sign."""
    return re.sub(r"(?<!\w)-(?=\d)", "\N{MINUS SIGN}", str(text))


def sentence(text: str) -> str:
    """With a capital letter in front; the others stay as they are."""
    return text[:1].upper() + text[1:]


def shade(table: ScoreTable, row: int, column: int) -> str:
    """The classes of a cell: how much better or worse than where the first domain began, and `learned`."""
    classes = ["learned"] if table.learned(row, column) else []
    if row < table.start:
        classes.append("before")
    classes.append(colour(table, table.change(row, column)))
    return " ".join(filter(None, classes))


def colour(table: ScoreTable, difference: Estimate | None) -> str:
    """The class of a difference: better or worse by how much, or `unclear` where it may be chance."""
    verdict = "" if difference is None else difference.verdict(table.larger_is_better)
    if difference is None or verdict not in ("better", "worse"):
        return verdict
    return f"{verdict}-{table.shade(difference)}"


def share_shade(share: float) -> str:
    """The class of a cell that holds a number from 0 to 1."""
    return f"share-{min(SHADES, max(0, round(SHADES * share)))}"


def settings_that_matter(summary: Summary) -> dict[str, str]:
    """What a person asks first of a run."""
    config, training = summary.config, summary.config.training
    domains = (f"{each.name} ({each.steps or training.steps} steps)" for each in config.domains)
    general = config.general
    shown = {
        "directory": str(summary.path),
        "method": config.method.name,
        "model": config.model.path,
        "domains": ", ".join(domains),
        "general text": "none",
        "batch": f"{training.batch_size} chunks of {config.data.length} tokens",
        "learning rate": f"{training.learning_rate:g}, {training.schedule}, "
        f"{training.warmup:.0%} of the steps to rise",
        "preset": config.preset,
        "seeds": ", ".join(map(str, summary.seeds)),
    }
    if general is not None:
        warm_up = f"warm-up of {general.steps} steps" if general.steps else "measured, not learned"
        shown["general text"] = f"{general.name} ({warm_up})"
    method = [f"{key} {value}" for key, value in leaves(config.method).items() if key != "name"]
    return shown | ({"method settings": ", ".join(method)} if method else {})


def changed_settings(summaries: Sequence[Summary]) -> dict[str, list[str]]:
    """The settings in which runs differ that have them: the value of every run, a dash where it has none."""
    values = [leaves(summary.config) for summary in summaries]
    keys = dict.fromkeys(itertools.chain(*values))
    shown = {key: [str(each.get(key, ABSENT)) for each in values] for key in keys}
    return {
        key: row
        for key, row in shown.items()
        if not key.startswith((*WHERE_NOT_WHAT, "seed")) and len({*row} - {ABSENT}) > 1
    }


def versions(summary: Summary) -> dict[str, str]:
    """What the first seed was begun with, programs and devices."""
    return RunDirectory(summary.runs[0].directory).versions()


def samples_of(summary: Summary) -> Sequence[tuple[str, list[tuple[str, str]]]]:
    """What the models of the first seed write behind every prompt; nothing if they were not asked."""
    found = read_samples(summary.runs[0].directory)
    return [] if found is None else shown(found)


def yaml_text(summary: Summary) -> str:
    """The whole configuration of the first seed."""
    path = summary.runs[0].directory / "config.yaml"
    lines = path.read_text(encoding="utf-8").splitlines()
    return "\n".join(
        line for line in lines if not line.startswith("#")
    )  # Earlier runs have comments.
