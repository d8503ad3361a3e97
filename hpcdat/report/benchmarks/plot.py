"""Time against size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.typing import ColorType

from hpcdat.performance.benchmark_file import Row
from hpcdat.report.benchmarks.files import Files
from hpcdat.report.benchmarks.fit import fit, limit
from hpcdat.report.benchmarks.lines import Line, Series, varying
from hpcdat.report.benchmarks.values import describe
from hpcdat.report.drawing import legend_beside, plain, svg

COLOURS = [colormaps["tab20"](number) for number in (*range(0, 20, 2), *range(1, 20, 2))]
"""Of the lines of a panel."""
STYLES = (("o", "-"), ("s", "--"), ("^", "-."), ("D", "-"))
"""Marker and line of each file."""
LIMIT_STYLE = ":"
"""Line of a card's limit."""


def plot_times(files: Files, series: Sequence[Series]) -> str:
    """Medians over sizes, with fitted lines and limits of the card: a panel for each operation.

    Args:
        files: by name.
        series: what they have measured over sizes; one or more.
    """
    by_operation: dict[str, list[Series]] = {}
    for one in series:
        by_operation.setdefault(str(one.parameters.get("operation", "")), []).append(one)
    figure = Figure(figsize=(9.0, 3.6 * len(by_operation)), layout="constrained")
    for place, (operation, lines) in enumerate(by_operation.items(), start=1):
        axes, limited = figure.add_subplot(len(by_operation), 1, place), False
        shown = varying([Line(one.parameters, {}) for one in lines]) or list(lines[0].parameters)
        for one, colour in zip(lines, cycle(COLOURS), strict=False):
            label = describe({key: one.parameters.get(key) for key in shown if key != "operation"})
            axes.plot([], [], "-", color=colour, label=plain(label))
            for (name, file), style in zip(files.items(), cycle(STYLES), strict=False):
                if points := one.points.get(name):
                    _draw(axes, points, colour, style)
                    limits = {size: limit(row, file) for size, row in points.items()}
                    known = {size: least for size, least in limits.items() if least}
                    axes.plot(list(known), list(known.values()), LIMIT_STYLE, color=colour, linewidth=1)
                    limited = limited or bool(known)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_title(plain(operation), fontsize=10)
        axes.set_xlabel("bytes", fontsize=9)
        axes.set_ylabel("seconds (median)", fontsize=9)
        _explain(axes, files, limited=limited)
        legend_beside(axes)
    return svg(figure)


def _draw(axes: Axes, points: Mapping[int, Row], colour: ColorType, style: tuple[str, str]) -> None:
    """Medians as markers, joined by the fitted line if there is one."""
    marker, line = style
    sizes, medians = list(points), [row.median for row in points.values()]
    axes.plot(sizes, medians, marker, color=colour, markersize=4, fillstyle="none")
    if fitted := fit(points):
        sizes = list(np.geomspace(fitted.smallest or 1, fitted.largest, 100))
        medians = [fitted.seconds(size) for size in sizes]
    axes.plot(sizes, medians, linestyle=line, color=colour, linewidth=1)


def _explain(axes: Axes, files: Files, *, limited: bool) -> None:
    """What markers and lines stand for, at the end of the legend."""
    for name, (marker, line) in zip(files, cycle(STYLES), strict=False):
        axes.add_line(
            Line2D([], [], color="grey", marker=marker, linestyle=line, fillstyle="none", label=plain(name))
        )
    if limited:
        axes.plot([], [], LIMIT_STYLE, color="grey", label="limit of the card")
