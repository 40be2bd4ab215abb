"""An importance map for people: a table per layer and a heat map."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

from das_jax.model.units import Units
from das_jax.outputs import creating

COLUMNS = 256
"""Units per heat-map row, at most; neighbours in rank are averaged beyond that."""


def importance_table(importance: Units, raw: Units, standard_error: Units | None) -> Table:
    """A row per layer and kind: mean importance, what the soft mask leaves, and how sure the raw map is."""
    table = Table(title="importance")
    for name in (
        "layer",
        "kind",
        "units",
        "mean I",
        "mean 1 - I",
        "I > 0.9",
        "raw mean",
        "relative error",
    ):
        table.add_column(name, justify="left" if name == "kind" else "right")
    layers = np.asarray(importance.heads).shape[0]
    for layer in range(layers):
        for kind in Units._fields:
            value_U, raw_U = (
                np.asarray(getattr(units, kind))[layer] for units in (importance, raw)
            )
            known = "unknown"
            if standard_error is not None:
                error_U = np.asarray(getattr(standard_error, kind))[layer]
                relative = np.median(error_U / np.maximum(raw_U, np.finfo(np.float32).tiny))
                known = f"{relative:.1%}"
            table.add_row(
                str(layer),
                kind,
                str(value_U.size),
                f"{value_U.mean():.3f}",
                f"{1 - value_U.mean():.3f}",
                f"{(value_U > 0.9).mean():.1%}",
                f"{raw_U.mean():.3e}",
                known,
            )
    return table


def write_heat_map(path: Path, importance: Units) -> None:
    """A picture, kinds side by side: a row per layer, the units of each in descending importance."""
    figure = Figure(
        figsize=(11, 0.35 * np.asarray(importance.heads).shape[0] + 1.6), layout="constrained"
    )
    axes = figure.subplots(1, 3)
    for axis, (kind, values) in zip(axes, importance._asdict().items(), strict=True):
        sorted_LxU = -np.sort(-np.asarray(values), axis=-1)
        columns = np.array_split(sorted_LxU, min(COLUMNS, sorted_LxU.shape[1]), axis=1)
        axis.imshow(
            np.stack([column.mean(axis=1) for column in columns], axis=1),
            aspect="auto",
            vmin=0,
            vmax=1,
            interpolation="nearest",
        )
        axis.set_title(f"{kind} ({sorted_LxU.shape[1]} per layer)")
        axis.set_xlabel("units, most important first")
        axis.set_ylabel("layer")
        axis.set_xticks([])
    figure.colorbar(axes[0].images[0], ax=axes, label="importance I")
    with creating(path, is_heat_map) as temporary:
        figure.savefig(temporary, format="png", dpi=120, metadata={"Software": "das_jax"})


def is_heat_map(path: Path) -> bool:
    """Whether a file is a picture written by `write_heat_map`."""
    with path.open("rb") as file:
        return b"Software\0das_jax" in file.read(1024)
