"""The figures of the page: curves of training, losses after every stage, importance, and trade-offs."""

from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from das_jax.data.objective import LM_LOSSES
from das_jax.evaluation.curves import over_seeds, starts
from das_jax.evaluation.protection import Protection
from das_jax.evaluation.score_table import TITLES, Kind, ScoreTable
from das_jax.evaluation.statistics import Estimate, Samples
from das_jax.evaluation.summary import Summary
from das_jax.evaluation.svg import INK, Plot, keys_of, plot

EFFECTIVE_MASK = "effective_mask/"
CROWDED = 4
"""So many names along an axis have room to stand upright."""


def plot_training(summaries: Sequence[Summary]) -> Plot | None:
    """The language model's loss of the training batches, which all methods have in common."""
    curves = {
        summary.name: (metric, summary)
        for summary in summaries
        for metric in LM_LOSSES
        if any(metric in record.metrics for record in summary.records[0])
    }
    return _plot_metrics(
        "Training loss",
        "Language-model loss of the training batches",
        curves,
        _units(summary.runs[0].unit for _, summary in curves.values()),
    )


def plot_effective_mask(summary: Summary) -> Plot | None:
    """What the soft mask leaves of the movement, per kind of unit."""
    records = summary.records[0]
    names = dict.fromkeys(name for record in records for name in record.metrics)
    return _plot_metrics(
        "Effective mask",
        "Size of the masked update over that of the unmasked one",
        {
            name.removeprefix(EFFECTIVE_MASK): (name, summary)
            for name in names
            if name.startswith(EFFECTIVE_MASK)
        },
        "share left",
    )


def _units(units: Iterable[str]) -> str:
    """Of an axis that several runs share."""
    return " or ".join(dict.fromkeys(units))


def _plot_metrics(
    title: str, description: str, curves: dict[str, tuple[str, Summary]], unit: str
) -> Plot | None:
    """A line per curve, {label: (metric, run)}: the mean over seeds; of several every seed, too, faintly."""
    lines: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    stages: dict[str, int] = {}
    for label, (metric, summary) in curves.items():
        steps_N, values_SxN = over_seeds(summary.records, metric)
        if steps_N.size:
            lines[label] = steps_N, values_SxN
            known = [record for record in summary.records[0] if metric in record.metrics]
            stages = stages or starts(known)
    keys = keys_of(lines)

    def draw(axes: Axes) -> None:
        for key in keys:
            steps_N, values_SxN = lines[key.label]
            axes.plot(steps_N, values_SxN.mean(axis=0), **key.line)
            if len(values_SxN) > 1:
                axes.plot(steps_N, values_SxN.T, color=key.colour, alpha=0.35, linewidth=0.6)
        for name, step in stages.items():
            axes.axvline(step, color=INK, alpha=0.35, linewidth=0.6)
            axes.annotate(
                name,
                (step, 1),
                xytext=(1, 2),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                rotation=30 if len(stages) > CROWDED else 0,
            )
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))

    if not lines:
        return None
    text = f"{description}, over the steps of training."
    if any(len(values_SxN) > 1 for _, values_SxN in lines.values()):
        text += " The mean, and every seed faintly."
    return plot(title, text, keys, "step", unit, draw)


def plot_heldout(summaries: Sequence[Summary]) -> list[Plot]:
    """Held-out losses after every stage: of one run all texts in one plot, of several a plot per text."""
    if len(summaries) == 1:
        table = summaries[0].tables["heldout"]
        return [_plot_losses("Held-out loss", {text: (table, text) for text in table.columns})]
    tables = {summary.name: summary.tables["heldout"] for summary in summaries}
    texts = summaries[0].tables["heldout"].columns
    return [
        _plot_losses(
            f"Held-out loss of {text}", {name: (table, text) for name, table in tables.items()}
        )
        for text in texts
    ]


def _plot_losses(title: str, curves: dict[str, tuple[ScoreTable, str]]) -> Plot:
    """A line per curve, {label: (table, column)}, from the model that the first domain began with on."""
    keys = keys_of(curves)

    def draw(axes: Axes) -> None:
        for key in keys:
            table, column = curves[key.label]
            index = table.columns.index(column)
            cells = [table.cell(row, index) for row in range(table.start, len(table.rows))]
            places = map(table.place, range(table.start, len(table.rows)))
            points = [
                (place, cell) for place, cell in zip(places, cells, strict=True) if cell is not None
            ]
            shift = 0.04 * (key.number - (len(keys) - 1) / 2)
            axes.errorbar(
                [place + shift for place, _ in points],
                [cell.mean for _, cell in points],
                yerr=[_half_width(cell) for _, cell in points],
                marker=key.marker,
                markersize=3.5,
                **key.line,
            )
        # The rows of a run that learns all at once stand where the others end.
        table = max((table for table, _ in curves.values()), key=lambda table: len(table.rows))
        names = table.rows[table.start :]
        axes.set_xticks([table.place(table.start + n) for n in range(len(names))], names)
        if len(names) > CROWDED:
            axes.tick_params("x", rotation=30)
        axes.grid(axis="x", visible=False)

    description = "Loss of text that is never trained on, after every stage."
    description += _bars({table.samples for table, _ in curves.values() if len(table.seeds) > 1})
    return plot(
        title,
        description,
        keys,
        "model after",
        _units(table.unit for table, _ in curves.values()),
        draw,
    )


def plot_trade_off(summaries: Sequence[Summary], kind: Kind) -> Plot | None:
    """Forgetting against plasticity, a cross of intervals per run."""
    measures = {each.name: each.measures(kind) for each in summaries if kind in each.tables}
    points = {
        name: (values["plasticity"], values["F"])
        for name, values in measures.items()
        if "plasticity" in values and "F" in values
    }
    keys = keys_of(points)

    def draw(axes: Axes) -> None:
        for key in keys:
            learned, forgotten = points[key.label]
            axes.errorbar(
                learned.mean,
                forgotten.mean,
                xerr=_half_width(learned),
                yerr=_half_width(forgotten),
                marker=key.marker,
                markersize=6,
                capsize=2,
                **{**key.line, "linestyle": "none"},
            )

    if not points:
        return None
    description = (
        "To the right: more is learned of every domain. Further down: less of it is forgotten."
    )
    tables = [each.tables[kind] for each in summaries if each.name in points]
    description += _bars({table.samples for table in tables if len(table.seeds) > 1})
    return plot(
        f"Forgetting against plasticity, {TITLES[kind]}",
        description,
        keys,
        "plasticity",
        "forgetting F",
        draw,
    )


def _bars(samples: set[Samples]) -> str:
    """What the bars are; nothing where no run has several samples."""
    over = " or ".join(sorted(samples))
    return f" Bars are 95 % intervals over {over} seeds (Student's t)." if samples else ""


def _half_width(value: Estimate) -> float:
    return value.half_width or 0.0


def plot_raw_importance(protection: Protection) -> list[Plot]:
    """The raw importance of every layer, a plot per kind of unit."""
    return [_plot_layers(protection, kind) for kind in protection.units]


def _plot_layers(protection: Protection, kind: str) -> Plot:
    keys = keys_of(protection.maps)

    def draw(axes: Axes) -> None:
        for key in keys:
            values_L = protection.raw_MxL[kind][key.number]
            axes.plot(values_L, marker=key.marker, markersize=3, **key.line)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:.3g}")
        axes.yaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_locator(MaxNLocator(12, integer=True))

    return plot(
        f"Raw importance: {kind}",
        "Mean size of the loss's gradient for a unit's gate, layer by layer.",
        keys,
        "layer",
        "mean |gate gradient|",
        draw,
    )
