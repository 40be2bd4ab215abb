"""What a person looks at: the table of held-out losses in the terminal, and a page with plots."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from rich.table import Table
from rich.text import Text

from das_jax.files import write_text
from das_jax.training.run_directory import RunDirectory

matplotlib.use("agg")

Scores = dict[str, dict[str, float]]

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<style>
 body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
 color: #222 } table { border-collapse: collapse } td, th { padding: .3rem .8rem; text-align: right;
 border-bottom: 1px solid #ddd } th:first-child, td:first-child { text-align: left } img { max-width: 100% }
 .learned { font-weight: bold } .worse { color: #b00 } .better { color: #070 }
</style></head><body>
<h1>{{ title }}</h1>
<h2>Held-out masked-LM loss, nats per masked token (less is better)</h2>
<table><tr><th>after</th>{% for name in columns %}<th>{{ name }}</th>{% endfor %}</tr>
{% for row in rows %}<tr><td>{{ row.name }}</td>{% for cell in row.cells %}
<td class="{{ cell.kind }}">{{ "%.3f"|format(cell.value) }}{% if cell.change is not none %}
 <small>({{ "%+.3f"|format(cell.change) }})</small>{% endif %}</td>{% endfor %}</tr>{% endfor %}
</table>
<p>Bold: the stage learned this text. In brackets: the change since the row above.</p>
{% for plot in plots %}<h2>{{ plot.title }}</h2><img alt="{{ plot.title }}"
src="data:image/png;base64,{{ plot.png }}"> {% endfor %}
</body></html>
"""


def score_table(scores: Scores) -> Table:
    """Rows: the base model and every stage; columns: every corpus; the change since the row above in
    brackets.
    """
    table = Table(title="held-out masked-LM loss, nats per masked token (less is better)")
    table.add_column("after")
    for name in next(iter(scores.values())):
        table.add_column(name, justify="right")
    for row, cells in score_rows(scores):
        texts = []
        for value, change, kind in cells:
            style = {"learned": "bold green", "worse": "red", "better": "green", "": ""}[kind]
            texts.append(
                Text(f"{value:.3f}" + ("" if change is None else f" ({change:+.3f})"), style)
            )
        table.add_row(Text(row), *texts)
    return table


def score_rows(scores: Scores) -> list[tuple[str, list[tuple[float, float | None, str]]]]:
    """For every row its cells: (loss, change since the row above, `learned`, `worse`, `better` or
    nothing).
    """
    rows = []
    previous: dict[str, float] | None = None
    for row, losses in scores.items():
        cells = []
        for name, value in losses.items():
            change = None if previous is None else value - previous[name]
            kind = "learned" if name == row else ""
            if not kind and change is not None and abs(change) >= 0.0005:
                kind = "worse" if change > 0 else "better"
            cells.append((value, change, kind))
        rows.append((row, cells))
        previous = losses
    return rows


def write_report(run: Path) -> None:
    """Writes a run's page, which needs no other file."""
    directory = RunDirectory(run)
    scores, stages = directory.scores(), sorted(run.glob("[0-9][0-9]-*"))
    rows = [
        {"name": row, "cells": [{"value": v, "change": c, "kind": k} for v, c, k in cells]}
        for row, cells in score_rows(scores)
    ]
    plots = [{"title": "Held-out loss after each stage", "png": _png(_plot_scores(scores))}]
    for metric, name in (
        ("loss", "Training loss"),
        ("effective_mask", "Effective mask: share of the movement that is left"),
    ):
        figure = _plot_metric(stages, metric)
        if figure is not None:
            plots.append({"title": name, "png": _png(figure)})
    template = jinja2.Environment(autoescape=True).from_string(PAGE)
    page = template.render(
        title=str(run), columns=list(next(iter(scores.values()))), rows=rows, plots=plots
    )
    write_text(directory.report, page)


def _plot_scores(scores: Scores) -> Figure:
    figure, axes = _figure()
    for name in next(iter(scores.values())):
        axes.plot(
            list(scores), [losses[name] for losses in scores.values()], marker="o", label=name
        )
    axes.set_ylabel("nats per masked token")
    axes.legend()
    return figure


def _plot_metric(stages: list[Path], prefix: str) -> Figure | None:
    """All metrics named `prefix` or `prefix/...`, stage after stage along one axis."""
    series: dict[str, list[tuple[float, float]]] = {}
    offset, borders = 0, []
    for stage in stages:
        path = stage / "metrics.jsonl"
        records = (
            [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        )
        for record in records:
            for name, value in record.items():
                if name == prefix or name.startswith(prefix + "/"):
                    series.setdefault(name, []).append((offset + record["step"], value))
        if records:
            borders.append((offset, stage.name))
            offset += records[-1]["step"]
    if not series:
        return None
    figure, axes = _figure()
    for name, points in series.items():
        axes.plot(*np.asarray(points).T, label=name)
    for start, name in borders:
        axes.axvline(start, color="#bbb", linewidth=0.8)
        axes.annotate(
            name, (start, 1.0), xycoords=("data", "axes fraction"), fontsize=8, va="bottom"
        )
    axes.set_xlabel("step")
    axes.legend()
    return figure


def _figure() -> tuple[Figure, Any]:
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    return figure, figure.subplots()


def _png(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return base64.b64encode(buffer.getvalue()).decode()
