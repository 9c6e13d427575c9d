"""Line charts of a run, as SVG in the page's own colours and typeface."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from pipelines.report.svg import SERIES_COLOURS, STAND_INS, themed_svg
from pipelines.report.text import compact, scientific
from pipelines.statistics import Interval

_INK, _GRID, _SURFACE = (STAND_INS[name] for name in ("ink-2", "grid", "surface"))
_MOST_POINTS = 400
# Width and height in inches, and the size of texts in points, legible also on a phone.
_SIZES = {"wide": (9.4, 3.1, 9.5), "half": (4.6, 2.7, 10.0), "third": (2.75, 1.9, 8.0)}


@dataclass(frozen=True)
class Series:
    """One line.

    Attributes:
        label: what the legend calls it.
        x: positions, ascending.
        y: values; NaN leaves a gap.
        intervals: the ends of an error bar at each point, or None.
        colour: index of a `--series-N` variable; 0 is the muted one.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    intervals: Sequence[Interval] | None = None
    colour: int = 1


def by_length(
    series: Sequence[Series],
    *,
    label: str,
    fraction: bool = False,
    difference: bool = False,
    size: str = "half",
) -> str:
    """Returns an SVG of values against context length on a logarithmic axis, with a marker for each.

    `label` describes the chart to a screen reader; `fraction` fixes the vertical axis to 0..1, `difference`
    shows differences of fractions in points around a line at zero.
    """
    figure, axes = _canvas(size)
    for each in series:
        colour = _colour(each)
        axes.plot(
            each.x,
            each.y,
            color=colour,
            linewidth=2,
            marker="o",
            markersize=5.5,
            markeredgecolor=_SURFACE,
            markeredgewidth=1.2,
            zorder=3 + each.colour,
            clip_on=False,
        )
        if each.intervals is not None:
            ends = [(interval.low, interval.high) for interval in each.intervals]
            # A bar's own ends, which need not lie around its point, as far as rounding goes.
            reach = np.abs(np.asarray(ends).T - np.asarray(each.y, float))
            axes.errorbar(each.x, each.y, yerr=reach, fmt="none", ecolor=colour, elinewidth=1.2, alpha=0.7)
    lengths = sorted({x for each in series for x in each.x})
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(lengths))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.margins(x=0.06)
    axes.set_xlabel("context, tokens")
    if difference:
        axes.axhline(0, color=_INK, linewidth=0.9, zorder=2)
        axes.margins(y=0.15)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_formatter(
            FuncFormatter(lambda value, _: f"{100 * value:+.3g}" if value else "0")
        )
    elif fraction:
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 1]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    else:
        _plain_y(axes)
    return themed_svg(figure, label)


def by_position(series: Sequence[Series], *, label: str, size: str = "wide") -> str:
    """Returns an SVG of values against the position in a text, with a band for the intervals."""
    figure, axes = _canvas(size)
    for each in series:
        axes.plot(each.x, each.y, color=_colour(each), linewidth=1.9, zorder=3 + each.colour)
        if each.intervals is not None:
            low, high = zip(*((interval.low, interval.high) for interval in each.intervals), strict=True)
            axes.fill_between(each.x, low, high, color=_colour(each), alpha=0.18, linewidth=0, zorder=2)
    axes.margins(x=0.01)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlabel("position in the text, tokens")
    _plain_y(axes)
    return themed_svg(figure, label)


def over_steps(series: Sequence[Series], *, label: str, size: str = "half", from_zero: bool = False) -> str:
    """Returns an SVG of values over training steps; noisy ones are thin, below their moving average."""
    figure, axes = _canvas(size)
    for each in series:
        x, y = _thinned(np.asarray(each.x, float), np.asarray(each.y, float))
        average = _moving_average(y)
        noisy = len(y) > 1 and _roughness(y) > 2 * _roughness(average)
        axes.plot(
            x, y, color=_colour(each), linewidth=1 if noisy else 1.8, alpha=0.35 if noisy else 1, zorder=3
        )
        if len(y) == 1:
            axes.plot(x, y, color=_colour(each), marker="o", markersize=5)
        if noisy:
            axes.plot(x, average, color=_colour(each), linewidth=1.9, zorder=4)
    axes.margins(x=0.01)
    if from_zero:
        axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlabel("step")
    _plain_y(axes)
    return themed_svg(figure, label)


def _colour(series: Series) -> str:
    return STAND_INS[f"series-{series.colour % SERIES_COLOURS}"]


def _canvas(size: str) -> tuple[Figure, Axes]:
    width, height, points = _SIZES[size]
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_GRID)
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_INK, labelsize=points, length=0, pad=6)
    axes.xaxis.label.set_color(_INK)
    axes.xaxis.label.set_fontsize(points)
    return figure, axes


def _plain_y(axes: Axes) -> None:
    axes.yaxis.set_major_locator(MaxNLocator(5))
    small = max(map(abs, axes.get_ylim())) < 0.01
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: scientific(value) if small else compact(value))
    )


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means of neighbouring points, so that no line has more points than the page has pixels for."""
    bins = -(-len(x) // _MOST_POINTS)
    if bins <= 1:
        return x, y
    groups = range(0, len(x), bins)
    return np.array([x[i : i + bins].mean() for i in groups]), np.array(
        [y[i : i + bins].mean() for i in groups]
    )


def _moving_average(y: np.ndarray) -> np.ndarray:
    """Mean over a window of a tenth of the points around each, narrower at both ends."""
    reach = len(y) // 20
    return np.array([y[max(0, i - reach) : i + reach + 1].mean() for i in range(len(y))])


def _roughness(y: np.ndarray) -> float:
    return float(np.abs(np.diff(y)).mean()) if len(y) > 1 else 0.0
