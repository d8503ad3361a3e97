"""Certified accuracy over the radius, as in Table 2 of the DAT paper: table, data and plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from hpcdat.config.evaluation_job import EvaluationJob
from hpcdat.config.job import Job
from hpcdat.errors import InputError, shorten
from hpcdat.evaluation.certification.certificates import Certified
from hpcdat.evaluation.certification.clopper_pearson import largest_radius
from hpcdat.evaluation.intervals import with_interval
from hpcdat.report.certificates import CERTIFIED_COLUMNS, RADII, write_certificates
from hpcdat.report.papers import TABLES
from hpcdat.report.papers.dat import stated_accuracies
from hpcdat.report.papers.paper_table import PaperRow
from hpcdat.report.plots import plot_certified
from hpcdat.report.result_table import INTERVALS
from hpcdat.storage.atomic_files import write_text


def certified_table(certified: Sequence[Certified], paper: Sequence[PaperRow] = ()) -> str:
    """A Markdown table with a row for each noise level and a note on its columns.

    Args:
        certified: one for each noise level.
        paper: rows of Table 2 to compare them with.
    """
    radii = [f"r = {radius:g}" for radius in RADII]
    header = ["", "sigma", "images", "n", "alpha", *radii, "ACR", "abstained"]
    rows = []
    for one in certified:
        images = len(one.counts)
        accuracies = [with_interval(one.accuracy(radius), images, 1) for radius in RADII]
        settings = [f"{one.sigma:g}", images, f"{one.n:,}", f"{one.alpha:g}"]
        name = "; ".join(["CA (%)", *one.changed])
        rows.append([name, *settings, *accuracies, f"{one.average_radius:.3f}", one.abstained])
        for row in paper:
            if row.work["smoothing.sigma"] == one.sigma:
                stated = stated_accuracies(row)
                cells = [stated.get(radius, "") for radius in RADII]
                rows.append([f"paper, {row.label}", f"{one.sigma:g}", "", "", "", *cells, "", ""])
    largest = dict.fromkeys(
        f"{largest_radius(one.n, one.alpha, one.sigma):.3f} at sigma {one.sigma:g} (n {one.n:,}, alpha "
        f"{one.alpha:g})"
        for one in certified
    )
    selection = "/".join(f"{n0:,}" for n0 in sorted({one.n0 for one in certified}))
    notes = [
        *CERTIFIED_COLUMNS,
        f"n0 = {selection} samples choose the class, n others bound its probability; each certificate is "
        "right with probability 1 - alpha or more.",
        f"No radius can be larger than {'; '.join(largest)}.",
        INTERVALS,
    ]
    if len(rows) > len(certified):
        notes.append(
            "The paper's rows: CIFAR-10, ResNet-18; unit, n0, n and alpha are not stated ([0, 1] assumed)."
        )
    return tabulate(rows, header, tablefmt="github", disable_numparse=True) + "\n\n" + "\n".join(notes)


def with_certified(before: Sequence[Certified], measured: Sequence[Certified]) -> list[Certified]:
    """All certificates of a run's weights after a further certification, those of its own job first.

    Args:
        before: those so far, possibly of other weights.
        measured: new ones, of one model; they replace those with the same noise level and settings.
    """
    replaced = {(one.sigma, one.changed) for one in measured}
    weights = {one.weights for one in measured}
    stay = [one for one in before if (one.sigma, one.changed) not in replaced and one.weights in weights]
    return sorted([*stay, *measured], key=lambda one: bool(one.changed))


def rows_beside(job: EvaluationJob) -> list[PaperRow]:
    """The rows of Table 2 named in a job's ``reproduces``.

    Raises:
        InputError: there is no such row.
    """
    rows = {f"dat-2/{row.key}": row for row in TABLES["dat-2"].rows}
    reproduces = job.reproduces if isinstance(job, Job) else []
    names = [name for name in reproduces if name.startswith("dat-2/")]
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
    ours = {one.label: one.correct_radii for one in certified}
    stated = {f"{row.setup}, {row.label}": stated_accuracies(row) for row in paper}
    write_text(folder / "certified.svg", plot_certified(ours, stated))
    write_text(folder / "certified.md", certified_table(certified, paper) + "\n")
