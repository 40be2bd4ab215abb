"""Plots of a comparison: every system as a curve over its grid, not as a point."""

from collections.abc import Sequence

from matplotlib.axes import Axes

from das_jax.comparing.choice import Choice
from das_jax.comparing.outcomes import GAIN, Measured
from das_jax.evaluation.statistics import Estimate
from das_jax.evaluation.svg import INK, Plot, keys_of, plot

FAINT = 0.35


def plots_of(choices: Sequence[Choice]) -> list[Plot]:
    """Forgetting against plasticity, and what is known of the domains against general text."""
    found = [
        _plot(
            choices,
            *("plasticity", "F"),
            "Forgetting against plasticity",
            "To the right: more is learned of every domain. Further down: less of it is forgotten.",
            *("plasticity, nats", "forgetting F, nats"),
            # What learns all at once forgets nothing between domains.
            upright=GAIN,
        ),
        _plot(
            choices,
            *("X-Delta", "OP"),
            "Domains against general text",
            "To the right: less of general text is forgotten. Further down: the domains are known better in "
            "the end.",
            *("X-Delta: what the loss of general text fell, nats", "OP, nats"),
        ),
    ]
    return [each for each in found if each is not None]


def _plot(
    choices: Sequence[Choice],
    x: str,
    y: str,
    title: str,
    description: str,
    x_label: str,
    y_label: str,
    upright: str | None = None,
) -> Plot | None:
    """A curve per system; bounds are points, and where x and y are not defined of one, an upright line."""
    shown = [each for each in choices if _places(each, x, y)]
    lines = [each for each in choices if each not in shown and each.bound and upright is not None]
    if not any(not each.bound for each in shown):
        return None
    by_system = {each.system: each for each in (*shown, *lines)}
    # A system looks the same in every plot.
    keys = tuple(key for key in keys_of(each.system for each in choices) if key.label in by_system)

    def draw(axes: Axes) -> None:
        for key in keys:
            choice = by_system[key.label]
            if choice in lines:
                value = choice.chosen.estimate(upright or "")
                if value is not None:
                    axes.axvline(value.mean, **{**key.line, "linestyle": ":"})
                continue
            places = _places(choice, x, y)
            for curve in _curves(choice.points):
                of_curve = [places[id(each)] for each in curve if id(each) in places]
                axes.plot(
                    [across.mean for across, _ in of_curve],
                    [up.mean for _, up in of_curve],
                    marker=key.marker,
                    markersize=3,
                    **key.line,
                )
            for measured in choice.points:
                if id(measured) in places:
                    across, up = places[id(measured)]
                    chosen = measured is choice.chosen
                    axes.errorbar(
                        *(across.mean, up.mean),
                        xerr=across.half_width or 0.0,
                        yerr=up.half_width or 0.0,
                        marker=key.marker if chosen else "none",
                        markersize=7,
                        markeredgecolor=INK,
                        markerfacecolor="none" if choice.bound else key.colour,
                        alpha=1.0 if chosen else FAINT,
                        capsize=2,
                        **{**key.line, "linestyle": "none"},
                    )

    description += (
        " A line per system over its grid, in the grid's order; the large mark is the point chosen."
    )
    if any(choice.bound for choice in by_system.values()):
        description += " Bounds: large marks that are not filled, and dotted lines."
    return plot(title, description, keys, x_label, y_label, draw)


def _places(choice: Choice, x: str, y: str) -> dict[int, tuple[Estimate, Estimate]]:
    """Where the points of a system lie, by identity; those alone that both measures are defined of."""
    found = {}
    for measured in choice.points:
        across, up = measured.estimate(x), measured.estimate(y)
        if across is not None and up is not None:
            found[id(measured)] = across, up
    return found


def _curves(points: Sequence[Measured]) -> list[list[Measured]]:
    """The points in lines along the last key of the grid, one for every choice of the other keys."""
    found: dict[tuple[str, ...], list[Measured]] = {}
    for each in points:
        others = [repr(value) for value in each.point.values.values()][:-1]
        found.setdefault(tuple(others), []).append(each)
    return list(found.values())
