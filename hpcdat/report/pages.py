"""A report on disk: Markdown, CSV, plots and one self-contained HTML page."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from math import prod
from pathlib import Path

import jinja2
from tabulate import tabulate

from hpcdat.errors import InputError
from hpcdat.evaluation.certification.clopper_pearson import largest_radius
from hpcdat.evaluation.intervals import with_interval
from hpcdat.report.certificates import CERTIFIED_COLUMNS
from hpcdat.report.comparison import Compared, Comparison, differences
from hpcdat.report.papers.paper_table import PaperTable
from hpcdat.report.plots import plot_comparison, plot_runs
from hpcdat.report.quantities import QUANTITIES
from hpcdat.report.result_table import (
    INTERVALS,
    SECONDS_AND_BYTES,
    USUAL_ATTACK,
    accuracy_notes,
    mean_and_spread,
    result_rows,
    training_notes,
)
from hpcdat.report.runs import Run, folder_names, varied
from hpcdat.storage.atomic_files import write_text
from hpcdat.storage.evaluated import WeightsResult
from hpcdat.storage.run_folder import Result

TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("hpcdat.report", "."), autoescape=True, undefined=jinja2.StrictUndefined
)
"""Loads the templates in this folder (page.html.j2)."""


@dataclass(frozen=True)
class Section:
    """One table of a report, with its plot and notes.

    Attributes:
        name: name of the plot's file, without extension.
        title: heading.
        header, rows: text of the table.
        names: number of columns at the left that hold text.
        plot: SVG; empty if there is none.
        notes: printed below the table.
    """

    name: str
    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    names: int
    plot: str
    notes: Sequence[str]

    @property
    def markdown(self) -> str:
        """Title, table, plot and notes."""
        aligned = ["left"] * self.names + ["right"] * (len(self.header) - self.names)
        table = tabulate(self.rows, self.header, tablefmt="github", disable_numparse=True, colalign=aligned)
        plot = [f"![{self.title}]({self.name}.svg)", ""] if self.plot else []
        return "\n".join(
            [f"## {self.title}", "", table, "", *plot, *(f"- {note}" for note in self.notes), ""]
        )


def comparison_section(comparison: Comparison) -> Section:
    """A paper's table: for each quantity ours and, if the paper states it, the paper's and their ratio."""
    quantities = [
        key for key in comparison.table.quantities if any(key in row.ours for row in comparison.rows)
    ]
    stated = {key for row in comparison.rows for key in row.paper}
    header = ["row", "the paper's", "ours"]
    for key in quantities:
        header += [QUANTITIES[key].header, *(["paper", "ours / paper"] if key in stated else [])]
    rows = []
    for compared in comparison.rows:
        cells = [
            compared.row.label,
            compared.row.setup,
            "; ".join(_setups(compared, comparison)),
        ]
        for key in quantities:
            ratio = compared.ratio(key)
            cells.append(_measured(compared, key))
            if key in stated:
                cells.append(_stated(compared, key))
                cells.append("" if ratio is None else f"{ratio:.3g}")
        rows.append(cells)
    table = comparison.table
    return Section(table.name, table.title, header, rows, 3, plot_comparison(comparison), _notes(comparison))


def runs_section(runs: Sequence[Run], given: Mapping[Path, WeightsResult]) -> Section:
    """A table of all runs, and of evaluations of given weights, without a paper's numbers.

    Args:
        runs: may be empty if there are evaluations.
        given: results of these evaluations by folder.
    """
    results: dict[Path, Result | WeightsResult] = {run.folder: run.result for run in runs}
    results |= given
    header, rows = result_rows(results)
    notes = accuracy_notes([*results.values()])
    if not runs:
        return Section("weights", "Given weights", header, rows, 1, "", notes)
    notes += [" ".join(training_notes([run.result for run in runs])), *_hardware(runs)]
    return Section("runs", "Runs", header, rows, 1, plot_runs(runs), notes)


def write_report(
    sections: Sequence[Section], folder: Path, title: str, *, maker: str = "hpcdat report"
) -> list[Path]:
    """Write report.md, report.csv and report.html, and each plot as SVG.

    Args:
        sections: in the order of the report.
        folder: created if missing.
        title: title of the page.
        maker: the command that makes it.

    Returns:
        The files written.

    Raises:
        InputError: the folder cannot be created or written.
    """
    made = f"Made by {maker}, {datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC."
    markdown = "\n".join([f"# {title}", "", *(section.markdown for section in sections), made, ""])
    page = TEMPLATES.get_template("page.html.j2").render(title=title, sections=sections, made=made)
    table = io.StringIO()
    writer = csv.writer(table)
    for section in sections:
        writer.writerow(["table", *section.header])
        writer.writerows([section.title, *row] for row in section.rows)
    texts = {"report.md": markdown, "report.csv": table.getvalue(), "report.html": page}
    texts |= {f"{section.name}.svg": section.plot for section in sections if section.plot}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            write_text(folder / name, text)
    except OSError as error:
        raise InputError(f"--out {folder} cannot be written: {error.strerror}") from None
    return [folder / name for name in texts]


def _notes(comparison: Comparison) -> list[str]:
    """Notes on what limits the comparison."""
    runs = comparison.runs
    missing: dict[str, list[str]] = {}
    for row in (compared.row for compared in comparison.rows if not (compared.runs or compared.row.cited)):
        missing.setdefault(row.label, []).append(row.setup)
    notes = [f"Paper: {comparison.table.hardware}.", *_hardware(runs), *_names(comparison)]
    others = _others(comparison)
    for names, texts in others.items():
        which = "" if len(names) == len(runs) else f" ({', '.join(names)})"
        notes.append(f"Differs from the paper{which}: {'; '.join(texts)}.")
    if others:
        notes.append(
            "So our seconds, bytes and accuracies are not comparable with the paper's; compare the rows "
            "within each side instead."
        )
    if below := [compared.row.label for compared in comparison.rows if compared.beside]:
        notes.append(
            "Rows that are not in the paper, each below the row whose exchange it replaces: "
            f"{', '.join(below)}."
        )
    if missing:
        rows = [f"{label} ({'; '.join(setups)})" for label, setups in missing.items()]
        notes.append(f"Not run: {', '.join(rows)}.")
    if "speed_up" in comparison.table.quantities and any(run.job.exchange.overlap for run in runs):
        notes.append(
            "Some of our exchanges overlapped the backward pass: T - C leaves out computation that hid them."
        )
    if comparison.table.epochs:
        _, images = comparison.table.epochs
        notes.append(f"Our C and T are scaled to {images:,} images, assumed to be the paper's epoch.")
    if any(run.environment.get("emulated_links") for run in runs):
        notes.append("Emulated nodes share one machine's cores, which bounds the speed-up of computation.")
    notes += [meaning for key in comparison.table.quantities if (meaning := QUANTITIES[key].meaning)]
    if comparison.table.certified:
        notes += [*_notes_on_certificates(comparison), INTERVALS]
    if "aa" in comparison.table.quantities:
        notes += _notes_on_aa(runs)
    quantities = comparison.table.quantities
    notes += _meanings(runs) if {"ta", "ra"} & set(quantities) else []
    notes += [" ".join(SECONDS_AND_BYTES)] if "c" in quantities else []
    known = [max(len(row.measured(key)) for key in quantities) for row in comparison.rows]
    counts = {number for number in known if number}
    several = f"means of {'/'.join(map(str, sorted(counts)))} runs a row, ± their standard deviation (n - 1)"
    theirs = f"; the paper's are means of {comparison.table.seeds} seeds" if comparison.table.seeds else ""
    notes.append(f"Ours are {'single runs' if counts == {1} else several}{theirs}.")
    for compared in comparison.rows:
        if differing := varied(compared.runs):
            texts = [f"{key}: {' / '.join(map(str, values))}" for key, values in differing.items()]
            notes.append(
                f"The runs of {compared.row.label}, {compared.row.setup}, differ in more than their seeds: "
                f"{'; '.join(texts)}."
            )
    return [*notes, *(f"About the paper: {note}" for note in comparison.table.notes)]


def _names(comparison: Comparison) -> list[str]:
    """The folders of our runs, row by row."""
    called = folder_names(comparison.runs)
    rows = [
        f"{one.row.label}, {one.row.setup}: {', '.join(called[run.folder] for run in one.runs)}"
        for one in comparison.rows
        if one.runs
    ]
    return [f"Runs: {'; '.join(rows)}."]


def _others(comparison: Comparison) -> dict[tuple[str, ...], list[str]]:
    """The settings in which runs differ from the paper, by the names of these runs."""
    called = folder_names(comparison.runs)
    names: dict[str, list[str]] = {}
    for compared in comparison.rows:
        for run in compared.runs:
            work = {**comparison.table.work, **compared.row.work}
            for difference in (*differences(work, run), *_other_epochs(run, comparison.table)):
                names.setdefault(difference, []).append(called[run.folder])
    others: dict[tuple[str, ...], list[str]] = {}
    for difference, whose in names.items():
        others.setdefault(tuple(whose), []).append(difference)
    return others


def _setups(compared: Compared, comparison: Comparison) -> list[str]:
    """What distinguishes our runs of a row, as text without duplicates."""
    if not comparison.table.certified:
        return list(dict.fromkeys(run.setup for run in compared.runs))
    texts = [
        f"{len(c.counts):,} images, n = {c.n:,}, alpha = {c.alpha:g}: r up to "
        f"{largest_radius(c.n, c.alpha, c.sigma):.3f}"
        for run in compared.runs
        if (c := run.certified)
    ]
    return list(dict.fromkeys(texts))


def _notes_on_certificates(comparison: Comparison) -> list[str]:
    """What certificates are, and which runs have none."""
    notes = [
        f"{' '.join(CERTIFIED_COLUMNS)} Each certificate is right with probability 1 - alpha or more. The "
        "plot shows all images of a row's runs."
    ]
    without = [run.folder for run in comparison.runs if run.certified is None]
    if without:
        commands = ", ".join(f"`hpcdat certify {folder}`" for folder in without)
        notes.append(f"Not certified at the noise of their training, so not among the numbers: {commands}.")
    mixed = [row for row in comparison.rows if len(_setups(row, comparison)) > 1]
    notes += [
        f"The runs of {row.row.label}, {row.row.setup}, were certified with different settings: their mean "
        "is not over seeds only."
        for row in mixed
    ]
    return notes


def _notes_on_aa(runs: Sequence[Run]) -> list[str]:
    """Which runs have no AA, and RA on the same images where AA is of fewer images than TA and RA."""
    called = folder_names(runs)
    without = [called[run.folder] for run in runs if run.result.aa is None]
    if len(without) == len(runs):
        return ["AA (AutoAttack) was not measured."]
    notes = [f"AA (AutoAttack) was not measured of {', '.join(without)}."] if without else []
    notes += [
        f"AA of {called[run.folder]} is not the standard version's: {run.result.aa_version}."
        for run in runs
        if run.result.aa is not None and run.result.aa_version
    ]
    for run in runs:
        result = run.result
        if result.aa is None or result.aa_images in (None, result.images):
            continue
        chosen = "the first ones" if run.job.takes_first_images else "balanced over the classes"
        same = "not measured" if result.aa_ra is None else with_interval(result.aa_ra, result.aa_images or 0)
        notes.append(
            f"AA of {called[run.folder]} is measured on {result.aa_images:,} test images, {chosen}; "
            f"RA on the same images: {same}."
        )
    return notes


def _meanings(runs: Sequence[Run]) -> list[str]:
    """What TA and RA are, with attack and number of images."""
    attacks = dict.fromkeys(f"{run.result.conditions} on {run.result.images:,} test images" for run in runs)
    return [f"Our TA: clean test accuracy; our RA: under {'; '.join(attacks)}. {USUAL_ATTACK} {INTERVALS}"]


def _hardware(runs: Sequence[Run]) -> list[str]:
    """The hardware of the runs, each kind once."""
    called = folder_names(runs)
    kinds: dict[str, list[str]] = {}
    for run in runs:
        kinds.setdefault(run.hardware, []).append(called[run.folder])
    alike = len(kinds) == 1
    return [
        f"Ours{'' if alike else ' (' + ', '.join(names) + ')'}: {hardware}."
        for hardware, names in kinds.items()
    ]


def _measured(compared: Compared, key: str) -> str:
    """Our number: mean and spread over several runs, with an interval for an accuracy of a single one."""
    quantity, measured = QUANTITIES[key], compared.measured(key)
    if not measured:
        return _number(compared.ours.get(key), quantity.digits)
    images = next(filter(None, map(quantity.images, compared.runs)), None) if quantity.images else None
    if len(measured) == 1 and images:
        return with_interval(measured[0] / 100, images, quantity.digits)
    return mean_and_spread(measured, quantity.digits)


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _stated(compared: Compared, quantity: str) -> str:
    """The paper's number, with its spread over the seeds if it states one."""
    digits = QUANTITIES[quantity].digits
    spread = compared.row.spreads.get(quantity)
    return _number(compared.paper.get(quantity), digits) + (f" ± {spread:g}" if spread else "")


def _other_epochs(run: Run, table: PaperTable) -> list[str]:
    """The images that a run sees in all, if the table states another number for the paper."""
    if table.epochs is None:
        return []
    ours, paper = sum(epoch["images"] for epoch in run.epochs), prod(table.epochs)
    return [] if ours == paper else [f"images in all epochs: {ours:,}, the paper's {paper:,} (assumed)"]
