"""Plots of a comparison with a paper: our numbers beside those that it states, as SVG text."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hpcdat.report.comparison import Compared, Comparison
from hpcdat.report.drawing import (
    HATCH,
    OURS,
    OUTLINE,
    PAPERS,
    bar_figure,
    legend_below,
    legend_beside,
    line_style,
    plain,
    stack_seconds,
    svg,
)
from hpcdat.report.papers.dat import stated_accuracies
from hpcdat.report.plots import plot_certified
from hpcdat.report.quantities import QUANTITIES

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
PAPER_STYLE = {"linestyle": "--", "fillstyle": "none"}
"""Of the paper's line beside ours, which has the same colour and marker."""


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
    figure = bar_figure(max(len(keys), 1), len(rows))
    titles: dict[Artist, list[str]] = {}
    for place, key in enumerate(keys):
        axes = figure.add_subplot(1, len(keys), place + 1)
        for offset, colour, hatch, label, values in (
            (0.2, OURS, "", "ours", [row.ours.get(key) for row in rows]),
            (-0.2, PAPERS, HATCH, "paper", [row.paper.get(key) for row in rows]),
        ):
            known = [(i + offset, value) for i, value in enumerate(values) if value is not None]
            places, lengths = [i for i, _ in known], [value for _, value in known]
            bars = axes.barh(places, lengths, 0.38, label=label, color=colour, hatch=hatch, **OUTLINE)
            titles |= {bar: [f"{label}: {v:.4g}"] for bar, v in zip(bars, lengths, strict=True)}
        _name_rows(axes, rows if place == 0 else [], len(rows))
        axes.set_title(QUANTITIES[key].header, fontsize=10)
    if keys:
        _legend_outside(figure)
    return svg(figure, titles)


def plot_seconds(comparison: Comparison) -> str:
    """C and computation of every row that was run: ours, and beside them the paper's if it states T.

    Returns:
        Empty if no row has a T.
    """
    rows = [row for row in reversed(comparison.rows) if any(run.result.total for run in row.runs)]
    if not rows:
        return ""
    sides = {"ours": [_mean_seconds(row) for row in rows]}
    if any("t" in row.paper for row in rows):
        sides["the paper's"] = [(row.paper.get("c"), row.paper.get("t")) for row in rows]
    figure, titles = bar_figure(2, len(rows)), dict[Artist, list[str]]()
    for place, (name, seconds) in enumerate(sides.items()):
        axes = figure.add_subplot(1, len(sides), place + 1)
        titles |= stack_seconds(axes, [c for c, _ in seconds], [t for _, t in seconds])
        _name_rows(axes, rows if place == 0 else [], len(rows))
        axes.set_title(f"seconds an epoch, {name}", fontsize=10)
        legend_below(axes)
    return svg(figure, titles)


def _mean_seconds(row: Compared) -> tuple[float | None, float | None]:
    """C and T, means over the runs of a row; scaled to the paper's epoch where the table's are."""
    c, t = row.measured("c"), row.measured("t")
    return fmean(c) if c else None, fmean(t) if t else None


def _name_rows(axes: Axes, rows: Sequence[Compared], count: int) -> None:
    """Name the bars of a panel; only the first of several panels has names."""
    axes.set_yticks(range(count) if rows else [])
    axes.set_yticklabels([plain(f"{row.row.label}, {row.row.setup}") for row in rows])
    axes.set_ylim(-0.6, count - 0.4)


def _legend_outside(figure: Figure) -> None:
    entries = figure.axes[-1].get_legend_handles_labels()
    figure.legend(*entries, fontsize=8, loc="outside right upper", frameon=False)


def _plot_perturbations(comparison: Comparison) -> str:
    """Accuracy over the perturbation, for the methods that were run."""
    methods = _rows_by_method(comparison)
    run = {label: rows for label, rows in methods.items() if any(row.runs for row in rows)}
    columns = min(len(run), 3)
    lines = -(-len(run) // columns)
    figure = Figure(figsize=(1.2 + 3.6 * columns, 2.8 * lines), layout="constrained")
    for place, (label, rows) in enumerate(run.items()):
        axes = figure.add_subplot(lines, columns, place + 1)
        for number, (name, values) in enumerate(
            (("ours", [row.ours.get("ta") for row in rows]), ("paper", [row.paper.get("ta") for row in rows]))
        ):
            known = [
                (255 * row.row.work["attack.eps"], value)
                for row, value in zip(rows, values, strict=True)
                if value is not None
            ]
            axes.plot(*zip(*known, strict=True), label=name, **line_style(number))
        axes.set_title(label, fontsize=10)
        axes.set_xlabel("p, 255ths (assumed)", fontsize=8)
        axes.set_ylabel(QUANTITIES["ta"].header, fontsize=8)
    _legend_outside(figure)
    return svg(figure)


def _plot_batches(comparison: Comparison) -> str:
    """Accuracy over the global batch: our line and the paper's for each method."""
    methods = _rows_by_method(comparison)
    figure = Figure(figsize=(7.5, 3.6), layout="constrained")
    axes = figure.add_subplot()
    ticks: dict[int, str] = {}
    for number, (label, rows) in enumerate(methods.items()):
        ticks |= {row.row.work["global batch"]: row.row.setup.removeprefix("batch ") for row in rows}
        for own, name, values in (
            ({}, f"{label}, ours", [row.ours.get("ta") for row in rows]),
            (PAPER_STYLE, f"{label}, paper", [row.paper.get("ta") for row in rows]),
        ):
            known = [
                (row.row.work["global batch"], value)
                for row, value in zip(rows, values, strict=True)
                if value is not None
            ]
            if known:
                points = zip(*known, strict=True)
                axes.plot(*points, label=name, **(line_style(number) | own))
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
