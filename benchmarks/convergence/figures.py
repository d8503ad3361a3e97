"""Two figures: the slopes of Theorem 1, and the bounds that have constants."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from convergence.comparison import Comparison
from convergence.slopes import BOUNDS, Panel, certain

BLUE, PALE, GOLD, RED, GREY = "#1f6fb2", "#b9cfe4", "#c9a15a", "#b23a3a", "#777777"

TITLES = {
    "theorem_2_T": "DAT, Theorem 2, kappa = 1",
    "theorem_2_T_kappa_4": "DAT, Theorem 2, kappa = 4",
    "theorem_2_MB": "DAT, Theorem 2",
    "theorem_2_b": "DAT, Theorem 2",
    "theorem_2_K": "DAT, Theorem 2",
    "theorem_2_beta_2": "DAT, Theorem 2",
    "conadv_T": "ConAdv, Theorem 1, tau = 1, M B = 4",
    "conadv_T_without_noise": "ConAdv, Theorem 1, tau = 1, no noise",
    "conadv_MB": "ConAdv, Theorem 1, tau = 0, T = 64",
    "conadv_tau": "ConAdv, Theorem 1, M B = 256",
    "conadv_K": "ConAdv, Theorem 1, tau = 0, M B = 256",
    "conadv_LAMB_T": "ConAdv with LAMB, tau = 1, bound derived here",
    "conadv_LAMB_tau": "ConAdv with LAMB, bound derived here",
    "conadv_LARS_T": "ConAdv with LARS, tau = 1, bound derived here",
    "conadv_LARS_tau": "ConAdv with LARS, bound derived here",
    "lemma_1_gradient": "ConAdv, Lemma 1",
    "lemma_1_LARS": "ConAdv, Lemma 1, LARS's step",
    "lemma_1_LAMB": "ConAdv, Lemma 1, LAMB's step",
}
"""Of each comparison."""

LINEAR = {"bits b", "steps of the inner ascent, K", "delay tau"}
"""What is not drawn on a logarithmic axis."""


def draw_bounds(comparisons: dict[str, Comparison], file: Path) -> None:
    """A panel for each comparison: what was measured, and the theorem's right-hand side as it is."""
    columns = 3
    rows = -(-len(comparisons) // columns)
    figure = Figure(figsize=(11, 3.2 * rows), layout="constrained")
    for number, (name, comparison) in enumerate(comparisons.items(), start=1):
        axes = figure.add_subplot(rows, columns, number)
        _draw_comparison(axes, comparison)
        axes.set_title(TITLES[name], fontsize=8)
    figure.savefig(file)


def _draw_comparison(axes: Axes, comparison: Comparison) -> None:
    x, measured = np.array(comparison.x), np.array(comparison.measured)
    axes.errorbar(x, measured, comparison.error, fmt="o-", color=BLUE, capsize=2, label="measured")
    # A bound of zero has no place on a logarithmic axis.
    axes.plot(
        x, np.where(np.array(comparison.bound) > 0, comparison.bound, np.nan), "--", color=GOLD, label="bound"
    )
    if comparison.proved:
        axes.plot(x, comparison.proved, "-.", color=GREY, label="what its proof gives")
    broken = np.array(comparison.violated)
    if broken.any():
        axes.plot(x[broken], measured[broken], "x", color=RED, ms=10, label="above the bound")
    if comparison.still:
        axes.plot(x, comparison.still, ls=":", color=GREY, label="a run that never moves")
    axes.set_yscale("log")
    if comparison.along not in LINEAR:
        axes.set_xscale("log")
    axes.set_xlabel(comparison.along, fontsize=9)
    axes.set_ylabel(comparison.of, fontsize=8)
    axes.legend(fontsize=7)


def draw_slopes(panels: dict[str, Panel], file: Path) -> None:
    """A panel for each term of Theorem 1; the bound's slope is laid through the middle of the values."""
    columns = 3
    figure = Figure(figsize=(11, 6.4), layout="constrained")
    for number, (name, (label, what, bound)) in enumerate(BOUNDS.items(), start=1):
        axes = figure.add_subplot(-(-len(BOUNDS) // columns), columns, number)
        panel = {key: np.array(values, float) for key, values in panels[name].items()}
        x, y, kept = panel["x"], panel["y"], certain(panels[name])
        axes.errorbar(
            x[kept], y[kept], panel["error"][kept], fmt="o-", color=BLUE, capsize=2, label="measured"
        )
        constant = np.exp(np.log(y[kept] / bound(x[kept])).mean())
        axes.plot(x, constant * bound(x), "--", color=GOLD, label="slope of the bound, any constant")
        if not kept.all():
            lost = 2 * panel["error"][~kept]
            axes.plot(x[~kept], lost, "v", color=PALE, label="in the noise, below")
        axes.set_yscale("log")
        if name != "b":
            axes.set_xscale("log")
        axes.set_xlabel(label)
        axes.set_ylabel(what)
        axes.legend(fontsize=8)
    figure.savefig(file)
