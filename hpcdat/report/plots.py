"""Plots of reports and evaluations, as SVG texts."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from hpcdat.report.comparison import QUANTITIES, Compared, Comparison, Run

OURS, PAPERS, REST = "#1f6fb2", "#c9a15a", "#b9cfe4"
"""Colours of our bars, of the paper's, and of the part of T that is not C."""
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
"""Quantities that are drawn, those of them that a table has."""


def plot_comparison(comparison: Comparison) -> str:
    """Ours and the paper's side by side: a panel for each quantity, of a sweep for each method."""
    if comparison.table.swept:
        return _plot_sweep(comparison)
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
    return _svg(figure)


def plot_runs(runs: Sequence[Run]) -> str:
    """C and the rest of T of every run, and its accuracies."""
    runs = list(reversed(runs))
    figure = _figure(2, len(runs))
    places = range(len(runs))
    seconds, accuracies = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)
    communication = [run.result.communication or 0.0 for run in runs]
    # With exchanges beside the backward pass C is a part of T's time, not an addend.
    rest = [(run.result.total or 0.0) - c for run, c in zip(runs, communication, strict=True)]
    seconds.barh(places, communication, color=OURS, label="C")
    seconds.barh(places, rest, left=communication, color=REST, label="rest of T")
    seconds.set_title("seconds an epoch", fontsize=10)
    seconds.set_yticks(places)
    seconds.set_yticklabels([str(run.folder).replace("$", r"\$") for run in runs])
    for offset, colour, label, values in (
        (0.2, REST, "TA (%)", [100 * run.result.ta for run in runs]),
        (-0.2, OURS, "RA (%)", [100 * run.result.ra for run in runs]),
    ):
        accuracies.barh([place + offset for place in places], values, 0.38, color=colour, label=label)
    accuracies.set_title("accuracy", fontsize=10)
    accuracies.set_yticks([])
    for axes in figure.axes:
        # Below the numbers of the axis, where it covers no bar.
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 0), borderaxespad=3, ncols=2)
    return _svg(figure)


def plot_bars(values: Mapping[str, float], title: str) -> str:
    """A bar for each name, the first one on top."""
    figure = _figure(1, len(values))
    axes = figure.add_subplot()
    axes.barh(list(reversed(values)), list(reversed(values.values())), color=OURS)
    axes.set_title(title, fontsize=10)
    return _svg(figure)


def plot_certified(
    ours: Mapping[str, NDArray[np.float64]], paper: Mapping[str, Mapping[float, float]]
) -> str:
    """Certified accuracy against radius.

    Args:
        ours: by label, the radii to which each image is certified rightly, ascending; below 0 for none.
        paper: by label, accuracies in [0, 1] by radius.
    """
    figure = Figure(figsize=(5.5, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for label, radii in ours.items():
        steps = np.unique(radii[radii >= 0])
        # Up to each radius and with it, accuracy is that of the images whose own is no smaller.
        heights = [100 * (radii >= step).mean() for step in steps]
        axes.step([0.0, *steps, *steps[-1:]], [*heights[:1], *heights, 0.0], where="pre", label=label)
    for label, accuracies in paper.items():
        percent = [100 * accuracy for accuracy in accuracies.values()]
        axes.plot(list(accuracies), percent, "o", color=PAPERS, markersize=4, label=label)
    axes.set_xlabel("l2 radius, [0, 1] units", fontsize=9)
    axes.set_ylabel("certified accuracy (%)", fontsize=9)
    axes.set_xlim(left=0)
    axes.set_ylim(0, 100)
    axes.legend(fontsize=8)
    return _svg(figure)


def _plot_sweep(comparison: Comparison) -> str:
    """Accuracy by perturbation, of the methods that were run."""
    methods: dict[str, list[Compared]] = {}
    for row in comparison.rows:
        methods.setdefault(row.row.label, []).append(row)
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
        axes.set_xlabel("p, 255ths", fontsize=8)
        axes.set_ylabel(QUANTITIES["ta"].header, fontsize=8)
    figure.legend(*figure.axes[-1].get_legend_handles_labels(), fontsize=8, loc="outside right upper")
    return _svg(figure)


def plot_sweep(over: str, values: Sequence[float], ra: Sequence[float]) -> str:
    """RA over radii or over steps, with the axes of DAT's Figure 3.

    Args:
        over: ``eps`` or ``steps``.
        values: radii in [0, 1] units, or numbers of steps.
        ra: in [0, 1], of each.
    """
    figure = Figure(figsize=(4.2, 3.2), layout="constrained")
    axes = figure.add_subplot()
    scale = 255 if over == "eps" else 1
    axes.plot([scale * value for value in values], [100 * share for share in ra], "o-", color=OURS)
    axes.set_xlabel("perturbation size (over 255)" if over == "eps" else "PGD steps", fontsize=9)
    axes.set_ylabel("RA (%)", fontsize=9)
    axes.set_ylim(0, 100)
    return _svg(figure)


def _figure(columns: int, rows: int) -> Figure:
    return Figure(figsize=(4.2 + 2.6 * columns, 1.2 + 0.38 * rows), layout="constrained")


def _svg(figure: Figure) -> str:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    # A page has one document type, its own.
    return text.getvalue()[text.getvalue().index("<svg") :]
