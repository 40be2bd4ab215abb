"""Plots that stand in a page: SVG whose text is text and whose ink is the page's own."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from html import escape
from io import StringIO
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle

WIDTH, HEIGHT = 4.7, 2.9
"""Inches. Small, so that text of 9 points can still be read where the page is as narrow as a phone."""

INK = "#010203"
"""Stands for the page's text colour, whatever it is there."""

COLOURS = ("#2b7bba", "#c8621b", "#1c8f6c", "#a8559b", "#94780f", "#c2455e", "#6b7785")
"""Lines that are told apart, in both colour schemes and by people who see red and green alike."""

DASHES = ("", "6 3", "2 2", "8 3 2 3")
MARKERS = "osD^vPX"

RC: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "das_jax",  # Equal plots have equal text.
    "text.parse_math": False,
    "font.size": 9,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": INK,
    "grid.alpha": 0.14,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
}


@dataclass(frozen=True)
class Key:
    """How one of the things in a plot is drawn."""

    label: str
    number: int

    @property
    def colour(self) -> str:
        return COLOURS[self.number % len(COLOURS)]

    @property
    def dashes(self) -> str:
        """As SVG's stroke-dasharray; empty for a solid line. All colours are used once before they return."""
        return DASHES[self.number // len(COLOURS) % len(DASHES)]

    @property
    def marker(self) -> str:
        return MARKERS[self.number % len(MARKERS)]

    @property
    def outline(self) -> str:
        """The marker as the points of an SVG polygon, about 1 wide."""
        style = MarkerStyle(self.marker)
        polygons = style.get_path().transformed(style.get_transform()).to_polygons()
        return " ".join(f"{x:.2f},{-y:.2f}" for x, y in np.asarray(polygons[0]))

    @property
    def line(self) -> dict[str, Any]:
        """What matplotlib draws it with."""
        lengths = tuple(float(each) / 1.4 for each in self.dashes.split())
        return {
            "color": self.colour,
            "linewidth": 1.4,
            "linestyle": (0, lengths) if lengths else "-",
        }


@dataclass(frozen=True)
class Plot:
    """A plot for a page.

    Attributes:
      title: what stands above it.
      description: what it shows, for those who do not see it.
      keys: what is in it; the page lists them, so that they are never in the way.
      svg: to be put into the page as it is.
    """

    title: str
    description: str
    keys: tuple[Key, ...]
    svg: str

    def numbered(self, number: int) -> str:
        """The SVG as a page's plot of that number: no two of them share an id."""
        return re.sub(r"""(\bid="|url\(#|href="#)""", rf"\g<1>plot-{number}-", self.svg)


def keys_of(labels: Iterable[str]) -> tuple[Key, ...]:
    """A key for each, in order."""
    return tuple(Key(label, number) for number, label in enumerate(labels))


def plot(
    title: str,
    description: str,
    keys: tuple[Key, ...],
    x: str,
    y: str,
    draw: Callable[[Axes], None],
) -> Plot:
    """A plot of what `draw` puts on axes with the labels x and y."""
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
        axes = figure.subplots()
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        draw(axes)
        return Plot(title, description, keys, _svg(figure, title, description))


def _svg(figure: Figure, title: str, description: str) -> str:
    """The figure as an element of an HTML page, not a document of its own."""
    file = StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    used = set(re.findall(r"(?:url\(|href=\")#([^)\"]+)", text))
    text = re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in used else "", text)
    text = re.sub(r"font-family: [^;]*; ", "", text)
    text = re.sub(r"\s*\n\s*", " ", text)
    text = text.replace(INK, "currentColor")
    box = re.search(r'viewBox="[^"]*"', text)
    assert box is not None
    label = escape(f"{title}. {description}")
    head = (
        f'<svg class="plot" role="img" aria-label="{label}" {box[0]}><title>{escape(title)}</title>'
    )
    return re.sub(r"<svg[^>]*>", lambda _: head, text, count=1)
