"""Certified accuracy over the radius, as in Table 2 of the DAT paper: table, data and plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from hpcdat.config.job import Job
from hpcdat.errors import InputError, shorten
from hpcdat.evaluation.certification.certificates import Certified
from hpcdat.evaluation.certification.clopper_pearson import largest_radius
from hpcdat.report.certificates import CERTIFIED_COLUMNS, RADII, write_certificates
from hpcdat.report.papers import TABLES
from hpcdat.report.papers.dat import stated_accuracies
from hpcdat.report.papers.paper_table import PaperRow
from hpcdat.report.plots import plot_certified
from hpcdat.storage.atomic_files import write_text


def certified_table(certified: Sequence[Certified], paper: Sequence[PaperRow] = ()) -> str:
    """A Markdown table with a row for each noise level and a note on its columns.

    Args:
        certified: one for each noise level.
        paper: rows of Table 2 to compare them with.
    """
    header = ["", "sigma", "images", *(f"r = {radius:g}" for radius in RADII), "ACR", "abstained"]
    rows = []
    for one in certified:
        accuracies = [f"{100 * one.accuracy(radius):.1f}" for radius in RADII]
        images = len(one.counts)
        rows.append(
            ["CA (%)", f"{one.sigma:g}", images, *accuracies, f"{one.average_radius:.3f}", one.abstained]
        )
        for row in paper:
            if row.work["smoothing.sigma"] == one.sigma:
                stated = stated_accuracies(row)
                cells = [stated.get(radius, "") for radius in RADII]
                rows.append([f"paper, {row.label}", f"{one.sigma:g}", "", *cells, "", ""])
    first = certified[0]
    largest = ", ".join(
        f"{largest_radius(one.n, one.alpha, one.sigma):.3f} at sigma {one.sigma:g}" for one in certified
    )
    columns = "\n".join(CERTIFIED_COLUMNS)
    note = (
        f"{columns}\nn0 = {first.n0:,}, n = {first.n:,}; each certificate is right with probability "
        f"{100 * (1 - first.alpha):g} % or more.\nNo radius can be larger than {largest}."
    )
    if len(rows) > len(certified):
        note += (
            "\nThe paper's rows: CIFAR-10, ResNet-18; unit, n0, n and alpha are not stated ([0, 1] assumed)."
        )
    return tabulate(rows, header, tablefmt="github", disable_numparse=True) + "\n\n" + note


def rows_beside(job: Job) -> list[PaperRow]:
    """The rows of Table 2 named in a job's ``reproduces``.

    Raises:
        InputError: there is no such row.
    """
    rows = {f"dat-2/{row.key}": row for row in TABLES["dat-2"].rows}
    names = [name for name in job.reproduces if name.startswith("dat-2/")]
    for name in names:
        if name not in rows:
            raise InputError(f"reproduces: {shorten(name)} is no row of Table 2; they are {', '.join(rows)}")
    return [rows[name] for name in names]


def write_certified(certified: Sequence[Certified], paper: Sequence[PaperRow], folder: Path) -> None:
    """Write certified.md, .json (the table), .csv (every image) and .svg (accuracy over the radius).

    Args:
        certified: one for each noise level.
        paper: rows of Table 2 to compare them with.
        folder: of the files.

    Raises:
        OSError: a file could not be written.
    """
    write_certificates(certified, folder)
    ours = {f"sigma {one.sigma:g}": one.correct_radii for one in certified}
    stated = {f"{row.setup}, {row.label}": stated_accuracies(row) for row in paper}
    write_text(folder / "certified.svg", plot_certified(ours, stated))
    write_text(folder / "certified.md", certified_table(certified, paper) + "\n")
