"""Certified accuracy against radius, as Table 2 of the DAT paper has it: table, data and plot."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tabulate import tabulate

from hpcdat.errors import InputError
from hpcdat.evaluation.certification import Certified, largest_radius
from hpcdat.files import write_text
from hpcdat.job import Job
from hpcdat.report.plots import plot_certified

RADII = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)
"""l2 radii of Table 2, [0, 1] units, and 0: accuracy where nothing is perturbed."""


@dataclass(frozen=True)
class PaperRow:
    """A row of Table 2: CIFAR-10, ResNet-18.

    Attributes:
        label: as the paper names it.
        sigma: of training and certification, [0, 1] units.
        accuracy: certified accuracy by radius, in [0, 1].
    """

    label: str
    sigma: float
    accuracy: Mapping[float, float]


def _row(label: str, sigma: float, *accuracies: float) -> PaperRow:
    return PaperRow(label, sigma, dict(zip(RADII[1:], accuracies, strict=True)))


TABLE_2 = {
    "dat-2/baseline-12": _row("Baseline (N = 2)", 0.12, 0.832, 0.804, 0.762, 0.728, 0.654, 0.545, 0.0),
    "dat-2/dat-12": _row("DAT (N = 20)", 0.12, 0.838, 0.812, 0.784, 0.748, 0.661, 0.550, 0.0),
    "dat-2/baseline-25": _row("Baseline (N = 2)", 0.25, 0.752, 0.730, 0.708, 0.678, 0.625, 0.562, 0.498),
    "dat-2/dat-25": _row("DAT (N = 20)", 0.25, 0.764, 0.748, 0.716, 0.688, 0.632, 0.566, 0.514),
}
"""By the names that a job's ``reproduces`` gives. The paper does not state n, n0 and alpha: that accuracy at
sigma 0.12 is 0 from r = 0.5 on, but not at 0.4, fits n = 100,000 and alpha = 0.001, and no n of 10,000."""


def certified_table(certified: Sequence[Certified], paper: Sequence[PaperRow] = ()) -> str:
    """A Markdown table, a row for each noise level, with the meaning of its columns below.

    Args:
        certified: one for each noise level.
        paper: rows of Table 2 that stand beside them.
    """
    header = ["", "sigma", "images", *(f"r = {radius:g}" for radius in RADII), "ACR", "abstained"]
    rows = []
    for one in certified:
        accuracies = [_percent(one.accuracy(radius)) for radius in RADII]
        images = len(one.counts)
        rows.append(
            ["CA (%)", f"{one.sigma:g}", images, *accuracies, f"{one.average_radius:.3f}", one.abstained]
        )
        for row in paper:
            if row.sigma == one.sigma:
                stated = [_percent(row.accuracy.get(radius)) for radius in RADII]
                rows.append([f"paper, {row.label}", f"{row.sigma:g}", "", *stated, "", ""])
    first = certified[0]
    largest = ", ".join(
        f"{largest_radius(one.n, one.alpha, one.sigma):.3f} at sigma {one.sigma:g}" for one in certified
    )
    note = (
        "CA: images classified right by the smoothed classifier and certified to an l2 radius of r or more,"
        "\n[0, 1] units. ACR: mean certified radius, 0 where it is wrong or abstains. "
        f"n0 = {first.n0:,}, n = {first.n:,};\neach certificate is right with probability "
        f"{100 * (1 - first.alpha):g} % or more. No radius can be larger than {largest}."
    )
    if len(rows) > len(certified):
        note += "\nThe paper's rows: CIFAR-10, ResNet-18; n0, n and alpha are not stated."
    return tabulate(rows, header, tablefmt="github", disable_numparse=True) + "\n\n" + note


def rows_beside(job: Job) -> list[PaperRow]:
    """The rows of Table 2 that a job says it stands for.

    Raises:
        InputError: there is no such row.
    """
    names = [name for name in job.reproduces if name.startswith("dat-2/")]
    for name in names:
        if name not in TABLE_2:
            raise InputError(f"reproduces: {name} is no row of Table 2; they are {', '.join(TABLE_2)}")
    return [TABLE_2[name] for name in names]


def write_certified(certified: Sequence[Certified], paper: Sequence[PaperRow], folder: Path) -> None:
    """Write certified.md, .json (the table), .csv (every image) and .svg (accuracy against radius).

    Args:
        certified: one for each noise level.
        paper: rows of Table 2 that stand beside them.
        folder: where to.

    Raises:
        OSError: a file could not be written.
    """
    summary = [
        {
            "sigma": one.sigma,
            "n0": one.n0,
            "n": one.n,
            "alpha": one.alpha,
            "images": len(one.counts),
            "abstained": one.abstained,
            "average_radius": one.average_radius,
            "largest_radius": largest_radius(one.n, one.alpha, one.sigma),
            "accuracy": {f"{radius:g}": one.accuracy(radius) for radius in RADII},
        }
        for one in certified
    ]
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["sigma", "image", "label", "class_a", "count", "n", "radius"])
    for one in certified:
        for counts, radius in zip(one.counts, one.radii, strict=True):
            told = "abstains" if np.isnan(radius) else f"{radius:.6f}"
            writer.writerow([one.sigma, counts.image, counts.label, counts.top, counts.count, one.n, told])
    write_text(folder / "certified.json", json.dumps(summary, indent=2) + "\n")
    write_text(folder / "certified.csv", table.getvalue())
    ours = {f"sigma {one.sigma:g}": np.sort(one.correct_radii) for one in certified}
    stated = {f"paper, sigma {row.sigma:g}, {row.label}": row.accuracy for row in paper}
    write_text(folder / "certified.svg", plot_certified(ours, stated))
    write_text(folder / "certified.md", certified_table(certified, paper) + "\n")


def _percent(accuracy: float | None) -> str:
    return "" if accuracy is None else f"{100 * accuracy:.1f}"
