"""Plots of reports and evaluations, as SVG text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev

import numpy as np
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from hpcdat.report.drawing import (
    HATCH,
    MARKERS,
    OURS,
    OUTLINE,
    PAPERS,
    REST,
    bar_figure,
    legend_below,
    legend_beside,
    line_style,
    plain,
    stack_seconds,
    svg,
    wrapped,
)
from hpcdat.report.quantities import QUANTITIES
from hpcdat.report.runs import Run, folder_names

BatchCurve = Mapping[int, Mapping[str, Sequence[float]]]
"""By global batch: the accuracies ``ta`` and ``ra`` (%) of every seed."""


def plot_bars(values: Mapping[str, float], title: str) -> str:
    """A bar for each name, the first at the top."""
    figure = bar_figure(1, len(values))
    axes = figure.add_subplot()
    axes.barh(list(values)[::-1], list(values.values())[::-1], color=OURS)
    axes.set_title(title, fontsize=10)
    return svg(figure)


def plot_runs(runs: Sequence[Run]) -> str:
    """C, the rest of T, and the accuracies of every run."""
    names = folder_names(runs)
    runs = list(reversed(runs))
    figure = bar_figure(2, len(runs))
    seconds, accuracies = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)
    results = [run.result for run in runs]
    titles = stack_seconds(seconds, [one.communication for one in results], [one.total for one in results])
    seconds.set_title("seconds an epoch", fontsize=10)
    seconds.set_yticks(range(len(runs)))
    seconds.set_yticklabels([wrapped(names[run.folder]) for run in runs])
    for offset, colour, hatch, label, values in (
        (0.2, REST, "", "TA (%)", [100 * one.ta for one in results]),
        (-0.2, OURS, HATCH, "RA (%)", [100 * one.ra for one in results]),
    ):
        places = [place + offset for place in range(len(runs))]
        bars = accuracies.barh(places, values, 0.38, label=label, color=colour, hatch=hatch, **OUTLINE)
        titles |= {bar: [f"{label} {value:.2f}"] for bar, value in zip(bars, values, strict=True)}
    accuracies.set_title("accuracy", fontsize=10)
    accuracies.set_yticks([])
    accuracies.set_xlim(0, 100)
    for axes in figure.axes:
        legend_below(axes)
    return svg(figure, titles)


def plot_certified(
    ours: Mapping[str, NDArray[np.float64]], paper: Mapping[str, Mapping[float, float]]
) -> str:
    """Certified accuracy against radius.

    Args:
        ours: by label, the radius to which each image is certified correctly; negative if it is not.
        paper: accuracies (%) by radius, by label; labels shared with ours get the same colour.
    """
    figure = Figure(figsize=(7.5, 3.6), layout="constrained")
    axes = figure.add_subplot()
    colours: dict[str, str] = {}
    for number, (label, radii) in enumerate(ours.items()):
        steps = np.unique(radii[radii >= 0])
        # At a radius, accuracy is the share of images whose own radius is at least as large.
        heights = [100 * (radii >= step).mean() for step in steps]
        x, y = [0.0, *steps, *steps[-1:]], [*heights[:1], *heights, 0.0]
        style = line_style(number)
        colours[label] = style["color"]
        # One marker, at the largest radius.
        axes.step(x, y, where="pre", label=plain(label), markevery=[len(x) - 2], clip_on=False, **style)
    for number, (label, accuracies) in enumerate(paper.items()):
        points, colour = zip(*accuracies.items(), strict=True), colours.get(label, PAPERS)
        marker = MARKERS[number % len(MARKERS)]
        axes.plot(*points, marker, color=colour, fillstyle="none", markersize=5, label=f"paper, {label}")
    assumed = " (assumed for the paper)" if paper else ""
    axes.set_xlabel(f"l2 radius, [0, 1] units{assumed}", fontsize=9)
    axes.set_ylabel("certified accuracy (%)", fontsize=9)
    axes.set_xlim(left=0)
    axes.set_ylim(0, 100)
    legend_beside(axes)
    return svg(figure)


def plot_over_batch(figures: Mapping[str, Mapping[str, BatchCurve]]) -> str:
    """TA and RA over the global batch, as in Figures 1, 2 and A1 of DAT: a row of panels for each figure.

    Args:
        figures: lines by label, by title (may be empty). With several seeds, error bars are one standard
            deviation each way.
    """
    figure = Figure(figsize=(9.5, 3.2 * len(figures)), layout="constrained")
    for row, (title, curves) in enumerate(figures.items()):
        batches = sorted({batch for curve in curves.values() for batch in curve})
        for column, key in enumerate(("ta", "ra"), start=1):
            axes = figure.add_subplot(len(figures), 2, 2 * row + column)
            for number, (label, curve) in enumerate(curves.items()):
                values = [curve[batch][key] for batch in sorted(curve)]
                spread = [stdev(seeds) if len(seeds) > 1 else 0.0 for seeds in values]
                means = list(map(fmean, values))
                style = line_style(number)
                axes.errorbar(sorted(curve), means, spread, capsize=3, label=plain(label), **style)
            axes.set_xscale("log")
            axes.set_xticks(batches, [f"{batch:,}" for batch in batches], rotation=45)
            axes.minorticks_off()
            axes.set_title(title, fontsize=10)
            axes.set_xlabel("global batch", fontsize=9)
            axes.set_ylabel(QUANTITIES[key].header, fontsize=9)
        legend_beside(axes)
    return svg(figure)


def plot_growth(panels: Mapping[str, Mapping[str, Mapping[int, float]]], x_label: str) -> str:
    """Quantities over a number, on logarithmic axes, two panels in a row; zeros are left out.

    Args:
        panels: by title, lines by label. Panels of a row have the same axes.
        x_label: of the number.
    """
    lines = -(-len(panels) // 2)
    figure = Figure(figsize=(9.5, 3.2 * lines), layout="constrained")
    for place, (title, curves) in enumerate(panels.items()):
        beside = figure.axes[-1] if place % 2 else None
        axes = figure.add_subplot(lines, 2, place + 1, sharey=beside)
        for line, (label, curve) in enumerate(curves.items()):
            known = {number: value for number, value in curve.items() if value}
            axes.plot(list(known), list(known.values()), label=plain(label), **line_style(line))
        axes.set_xscale("log")
        axes.set_yscale("log")
        numbers = sorted({number for curve in curves.values() for number in curve})
        axes.set_xticks(numbers, [f"{number:,}" for number in numbers])
        axes.minorticks_off()
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(x_label, fontsize=9)
        if place % 2 or place == len(panels) - 1:
            legend_beside(axes)
    return svg(figure)


def plot_sweep(over: str, curves: Mapping[str, Mapping[float, float]], *, fine: bool) -> str:
    """RA over radii or over steps, with the axes of DAT's Figure 3.

    Args:
        over: ``eps`` or ``steps``.
        curves: by label (may be empty if there is only one), RA in [0, 1] by radius ([0, 1] units) or steps.
        fine: whether the axis of radii is in 255ths.
    """
    figure = Figure(figsize=(6.5 if any(curves) else 4.2, 3.2), layout="constrained")
    axes = figure.add_subplot()
    scale = 255 if over == "eps" and fine else 1
    titles: dict[Artist, Sequence[str]] = {}
    for number, (label, curve) in enumerate(curves.items()):
        values, ra = [scale * value for value in curve], [100 * share for share in curve.values()]
        (line,) = axes.plot(values, ra, label=plain(label), clip_on=False, **line_style(number))
        titles[line] = [f"{label} RA {y:.2f} % at {x:.4g}".strip() for x, y in zip(values, ra, strict=True)]
    if any(curves):
        legend_beside(axes)
    radius = f"perturbation size ({'over 255' if fine else '[0, 1] units'})"
    axes.set_xlabel(radius if over == "eps" else "PGD steps", fontsize=9)
    axes.set_ylabel("RA (%)", fontsize=9)
    axes.set_ylim(0, 100)
    return svg(figure, titles)


EpochCurve = Mapping[str, Mapping[int, Sequence[float]]]
"""``ta`` and ``ra``: by epoch the accuracies (%) of every seed."""


def plot_over_epochs(figures: Mapping[str, Mapping[str, EpochCurve]]) -> str:
    """TA and RA over the epochs, as in Figure 4 of DAT: a row of panels for each data set.

    Args:
        figures: by title, lines by label. With several seeds, the band is one standard deviation each way.
    """
    figure = Figure(figsize=(9.5, 3.2 * len(figures)), layout="constrained")
    for row, (title, curves) in enumerate(figures.items()):
        for column, key in enumerate(("ta", "ra"), start=1):
            axes = figure.add_subplot(len(figures), 2, 2 * row + column)
            for number, (label, curve) in enumerate(curves.items()):
                epochs = sorted(curve[key])
                means = np.array([fmean(curve[key][epoch]) for epoch in epochs])
                spread = np.array([stdev(s) if len(s := curve[key][e]) > 1 else 0.0 for e in epochs])
                # Of many epochs only some have a marker.
                style = line_style(number) | {"markevery": max(1, len(epochs) // 15)}
                axes.plot(epochs, means, label=plain(label), **style)
                band = {"color": style["color"], "alpha": 0.2, "lw": 0}
                axes.fill_between(epochs, means - spread, means + spread, **band)
            axes.set_title(title, fontsize=10)
            axes.set_xlabel("epoch", fontsize=9)
            axes.set_ylabel(QUANTITIES[key].header, fontsize=9)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend_beside(axes)
    return svg(figure)
