"""Certified accuracy of runs as a section of a report, without a paper's numbers."""

from __future__ import annotations

from collections.abc import Sequence

from hpcdat.evaluation.intervals import with_interval
from hpcdat.report.certificates import CERTIFIED_COLUMNS, RADII, read_certificates
from hpcdat.report.plots import plot_certified
from hpcdat.report.result_table import INTERVALS
from hpcdat.report.runs import Run, folder_names
from hpcdat.report.section import Section, Table
from hpcdat.storage.run_folder import RunFolder

CAPTION = (
    "The share of all certified images that is classified correctly and certified to a radius or beyond."
)


def certificate_sections(runs: Sequence[Run]) -> list[Section]:
    """The certificates of all runs, at each noise level; none if no run is certified.

    Raises:
        InputError: the certificates of a run are damaged.
    """
    names = folder_names(runs) if runs else {}
    certified = [
        (names[run.folder], one)
        for run in runs
        for one in read_certificates(RunFolder(run.folder).certification_folder)
    ]
    if not certified:
        return []
    radii = [f"CA (%), r = {radius:g}" for radius in RADII]
    header = ["run", "sigma", "images", "n", "alpha", *radii, "ACR", "abstained"]
    rows, groups = [], []
    for name, one in certified:
        images = len(one.counts)
        settings = [f"{one.sigma:g}", f"{images:,}", f"{one.n:,}", f"{one.alpha:g}"]
        accuracies = [with_interval(one.accuracy(radius), images, 1) for radius in RADII]
        row = ["; ".join([name, *one.changed]), *settings, *accuracies]
        rows.append([*row, f"{one.average_radius:.3f}", str(one.abstained)])
        conditions = [f"{images:,} images", f"n = {one.n:,}, alpha = {one.alpha:g}", *one.changed]
        groups.append([["\n".join([name, *conditions]), settings[0], *rows[-1][5:]]])
    heads = ["Run", "sigma", *(f"r = {radius:g}" for radius in RADII), "ACR", "abstained"]
    notes = [
        *CERTIFIED_COLUMNS,
        "sigma: standard deviation of the noise. n samples of it around each image bound the probability of "
        "its class; each certificate is right with probability 1 - alpha or more.",
        INTERVALS,
    ]
    curves = {f"{name}, {one.label}": one.correct_radii for name, one in certified}
    return [
        Section(
            "certificates",
            "Certified accuracy (CA, %) over the l2 radius r",
            header,
            rows,
            1,
            plot_certified(curves, {}),
            notes,
            caption=CAPTION,
            table=Table(heads, groups, 1),
        )
    ]
