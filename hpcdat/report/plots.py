"""Plots of reports and evaluations, as SVG text."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import cycle
from statistics import fmean, stdev
from textwrap import fill

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.typing import ColorType
from numpy.typing import NDArray

from hpcdat.report.comparison import Compared, Comparison
from hpcdat.report.papers.dat import stated_accuracies
from hpcdat.report.quantities import QUANTITIES
from hpcdat.report.runs import Run

OURS, PAPERS, REST = "#1f6fb2", "#c9a15a", "#b9cfe4"
"""Colours of our bars, of the paper's, and of T without C."""
LEGEND_WIDTH = 44
"""Characters in a line of a legend; names of run folders may be longer."""
PANELS = (
    "c_of_reference",
    "speed_up",
    "ta",
    "ra",
    "training",
    "training_of_reference",
    "throughput",
    "throughput_of_reference",
    "gap",
)
"""Quantities to draw, if a table has them."""

BatchCurve = Mapping[int, Mapping[str, Sequence[float]]]
"""By global batch: the accuracies ``ta`` and ``ra`` (%) of every seed."""


def plot_comparison(comparison: Comparison) -> str:
    """Ours and the paper's: bars, or lines for a sweep, for certificates and for a figure over batches."""
    if comparison.table.swept:
        return _plot_perturbations(comparison)
    if comparison.table.over_batch:
        return _plot_batches(comparison)
    if comparison.table.certified:
        return _plot_certificates(comparison)
    keys = [key for key in PANELS if any(key in row.ours for row in comparison.rows)]
    rows = list(reversed(comparison.rows))
    figure = _figure(max(len(keys), 1), len(rows))
    for place, key in enumerate(keys):
        axes = figure.add_subplot(1, len(keys), place + 1)
        for offset, colour, label, values in (
            (0.2, OURS, "ours", [row.ours.get(key) for row in rows]),
            (-0.2, PAPERS, "paper", [row.paper.get(key) for row in rows]),
        ):
            places = [i + offset for i, value in enumerate(values) if value is not None]
            axes.barh(places, [v for v in values if v is not None], 0.38, color=colour, label=label)
        axes.set_yticks(range(len(rows)))
        axes.set_yticklabels([f"{row.row.label}, {row.row.setup}" for row in rows] if place == 0 else [])
        axes.set_title(QUANTITIES[key].header, fontsize=10)
        axes.set_ylim(-0.6, len(rows) - 0.4)
    if keys:
        figure.legend(*figure.axes[-1].get_legend_handles_labels(), fontsize=8, loc="outside right upper")
    return svg(figure)


def plot_runs(runs: Sequence[Run]) -> str:
    """C, the rest of T, and the accuracies of every run."""
    runs = list(reversed(runs))
    figure = _figure(2, len(runs))
    places = range(len(runs))
    seconds, accuracies = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)
    communication = [run.result.communication or 0.0 for run in runs]
    # If exchanges overlap the backward pass, C is part of T, not added to it.
    rest = [(run.result.total or 0.0) - c for run, c in zip(runs, communication, strict=True)]
    seconds.barh(places, communication, color=OURS, label="C")
    seconds.barh(places, rest, left=communication, color=REST, label="rest of T")
    seconds.set_title("seconds an epoch", fontsize=10)
    seconds.set_yticks(places)
    seconds.set_yticklabels([fill(str(run.folder), LEGEND_WIDTH).replace("$", r"\$") for run in runs])
    for offset, colour, label, values in (
        (0.2, REST, "TA (%)", [100 * run.result.ta for run in runs]),
        (-0.2, OURS, "RA (%)", [100 * run.result.ra for run in runs]),
    ):
        accuracies.barh([place + offset for place in places], values, 0.38, color=colour, label=label)
    accuracies.set_title("accuracy", fontsize=10)
    accuracies.set_yticks([])
    for axes in figure.axes:
        # Below the axis, where it covers no bar.
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 0), borderaxespad=3, ncols=2)
    return svg(figure)


def plot_bars(values: Mapping[str, float], title: str) -> str:
    """A bar for each name, the first at the top."""
    figure = _figure(1, len(values))
    axes = figure.add_subplot()
    axes.barh(list(values)[::-1], list(values.values())[::-1], color=OURS)
    axes.set_title(title, fontsize=10)
    return svg(figure)


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
    colours: dict[str, ColorType] = {}
    for label, radii in ours.items():
        steps = np.unique(radii[radii >= 0])
        # At a radius, accuracy is the share of images whose own radius is at least as large.
        heights = [100 * (radii >= step).mean() for step in steps]
        x, y = [0.0, *steps, *steps[-1:]], [*heights[:1], *heights, 0.0]
        (line,) = axes.step(x, y, where="pre", label=label)
        colours[label] = line.get_color()
    for marker, (label, accuracies) in zip(cycle("os^D"), paper.items(), strict=False):
        points, colour = zip(*accuracies.items(), strict=True), colours.get(label, PAPERS)
        axes.plot(*points, marker, color=colour, fillstyle="none", markersize=5, label=f"paper, {label}")
    axes.set_xlabel("l2 radius, [0, 1] units (assumed for the paper)", fontsize=9)
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
            for label, curve in curves.items():
                values = [curve[batch][key] for batch in sorted(curve)]
                spread = [stdev(seeds) if len(seeds) > 1 else 0.0 for seeds in values]
                means = list(map(fmean, values))
                axes.errorbar(sorted(curve), means, spread, fmt="o-", markersize=4, capsize=3, label=label)
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
        for label, curve in curves.items():
            known = {number: value for number, value in curve.items() if value}
            axes.plot(list(known), list(known.values()), "o-", markersize=4, label=label)
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


def _plot_perturbations(comparison: Comparison) -> str:
    """Accuracy over the perturbation, for the methods that were run."""
    methods = _rows_by_method(comparison)
    run = {label: rows for label, rows in methods.items() if any(row.runs for row in rows)}
    columns = min(len(run), 3)
    lines = -(-len(run) // columns)
    figure = Figure(figsize=(1.2 + 3.6 * columns, 2.8 * lines), layout="constrained")
    for place, (label, rows) in enumerate(run.items()):
        axes = figure.add_subplot(lines, columns, place + 1)
        for colour, name, values in (
            (OURS, "ours", [row.ours.get("ta") for row in rows]),
            (PAPERS, "paper", [row.paper.get("ta") for row in rows]),
        ):
            known = [
                (255 * row.row.work["attack.eps"], value)
                for row, value in zip(rows, values, strict=True)
                if value is not None
            ]
            axes.plot(*zip(*known, strict=True), color=colour, marker="o", markersize=4, label=name)
        axes.set_title(label, fontsize=10)
        axes.set_xlabel("p, 255ths (assumed)", fontsize=8)
        axes.set_ylabel(QUANTITIES["ta"].header, fontsize=8)
    figure.legend(*figure.axes[-1].get_legend_handles_labels(), fontsize=8, loc="outside right upper")
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
    for label, curve in curves.items():
        values, ra = [scale * value for value in curve], [100 * share for share in curve.values()]
        # A dollar sign would start a formula.
        axes.plot(values, ra, "o-", markersize=4, label=label.replace("$", r"\$"))
    if any(curves):
        legend_beside(axes)
    radius = f"perturbation size ({'over 255' if fine else '[0, 1] units'})"
    axes.set_xlabel(radius if over == "eps" else "PGD steps", fontsize=9)
    axes.set_ylabel("RA (%)", fontsize=9)
    axes.set_ylim(0, 100)
    return svg(figure)


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
            for label, curve in curves.items():
                epochs = sorted(curve[key])
                means = np.array([fmean(curve[key][epoch]) for epoch in epochs])
                spread = np.array([stdev(s) if len(s := curve[key][e]) > 1 else 0.0 for e in epochs])
                # Few epochs are seen as points, many as a line.
                style = "o-" if len(epochs) <= 30 else "-"
                (line,) = axes.plot(epochs, means, style, markersize=4, label=label)
                colour = line.get_color()
                axes.fill_between(epochs, means - spread, means + spread, color=colour, alpha=0.2, lw=0)
            axes.set_title(title, fontsize=10)
            axes.set_xlabel("epoch", fontsize=9)
            axes.set_ylabel(QUANTITIES[key].header, fontsize=9)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend_beside(axes)
    return svg(figure)


def _plot_batches(comparison: Comparison) -> str:
    """Accuracy over the global batch: our line and the paper's for each method."""
    methods = _rows_by_method(comparison)
    figure = Figure(figsize=(7.5, 3.6), layout="constrained")
    axes = figure.add_subplot()
    ticks: dict[int, str] = {}
    for number, (label, rows) in enumerate(methods.items()):
        ticks |= {row.row.work["global batch"]: row.row.setup.removeprefix("batch ") for row in rows}
        for style, name, values in (
            ("o-", f"{label}, ours", [row.ours.get("ta") for row in rows]),
            ("s--", f"{label}, paper", [row.paper.get("ta") for row in rows]),
        ):
            known = [
                (row.row.work["global batch"], value)
                for row, value in zip(rows, values, strict=True)
                if value is not None
            ]
            if known:
                hollow = "full" if name.endswith("ours") else "none"
                points = zip(*known, strict=True)
                axes.plot(*points, style, color=f"C{number}", fillstyle=hollow, markersize=5, label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(ticks), list(ticks.values()), rotation=45)
    axes.minorticks_off()
    axes.set_xlabel("global batch", fontsize=9)
    axes.set_ylabel(QUANTITIES["ta"].header, fontsize=9)
    legend_beside(axes)
    return svg(figure)


def _plot_certificates(comparison: Comparison) -> str:
    """Certified accuracy over the radius, all seeds of a row together."""
    ours, paper = {}, {}
    for compared in comparison.rows:
        certified = [run.certified for run in compared.runs if run.certified]
        if certified:
            label = f"{compared.row.setup}, {compared.row.label}"
            ours[label] = np.concatenate([one.correct_radii for one in certified])
            paper[label] = stated_accuracies(compared.row)
    return plot_certified(ours, paper)


def _rows_by_method(comparison: Comparison) -> dict[str, list[Compared]]:
    methods: dict[str, list[Compared]] = {}
    for row in comparison.rows:
        methods.setdefault(row.row.label, []).append(row)
    return methods


def legend_beside(axes: Axes) -> None:
    """Place the legend to the right of the axes, long names in several lines."""
    legend = axes.legend(
        fontsize=8, loc="upper left", bbox_to_anchor=(1.02, 1), borderaxespad=0, frameon=False
    )
    for text in legend.get_texts():
        text.set_text(fill(text.get_text(), LEGEND_WIDTH))


def _figure(columns: int, rows: int) -> Figure:
    return Figure(figsize=(4.2 + 2.6 * columns, 1.2 + 0.38 * rows), layout="constrained")


def svg(figure: Figure) -> str:
    """The figure as SVG text, in the style of all plots."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    # Without the XML prologue: an HTML page has its own document type.
    return text.getvalue()[text.getvalue().index("<svg") :]
