"""A report on disk: Markdown, CSV and one HTML page that needs nothing but itself."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import jinja2
from tabulate import tabulate

from hpcdat.errors import InputError
from hpcdat.files import write_text
from hpcdat.report.comparison import QUANTITIES, Comparison, Run, differences
from hpcdat.report.plots import plot_comparison, plot_runs
from hpcdat.report.table import result_rows

TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("hpcdat.report", "."), autoescape=True, undefined=jinja2.StrictUndefined
)


@dataclass(frozen=True)
class Section:
    """One table of a report, with its plot and notes.

    Attributes:
        title: of the table.
        header, rows: its text.
        names: columns at the left that are words.
        plot: SVG.
        notes: below it.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    names: int
    plot: str
    notes: Sequence[str]

    @property
    def markdown(self) -> str:
        """Title, table and notes."""
        aligned = ["left"] * self.names + ["right"] * (len(self.header) - self.names)
        table = tabulate(self.rows, self.header, tablefmt="github", disable_numparse=True, colalign=aligned)
        return "\n".join([f"## {self.title}", "", table, "", *(f"- {note}" for note in self.notes), ""])


def comparison_section(comparison: Comparison) -> Section:
    """A paper's table: for each quantity ours, the paper's, and their ratio."""
    quantities = [
        key for key in comparison.table.quantities if any(key in row.ours for row in comparison.rows)
    ]
    header = ["row", "the paper's", "ours"]
    for key in quantities:
        header += [QUANTITIES[key].header, "paper", "ours / paper"]
    rows = []
    for compared in comparison.rows:
        cells = [
            compared.row.label,
            compared.row.setup,
            "; ".join({run.setup: None for run in compared.runs}),
        ]
        for key in quantities:
            digits, ratio = QUANTITIES[key].digits, compared.ratio(key)
            cells.append(_number(compared.ours.get(key), digits))
            cells.append(_number(compared.paper.get(key), digits))
            cells.append("" if ratio is None else f"{ratio:.3g}")
        rows.append(cells)
    return Section(comparison.table.title, header, rows, 3, plot_comparison(comparison), _notes(comparison))


def runs_section(runs: Sequence[Run]) -> Section:
    """All runs, without a paper beside them."""
    header, rows = result_rows({run.folder: run.result for run in runs})
    notes = [*_meanings(runs), *_hardware(runs)]
    return Section("Runs", header, rows, 1, plot_runs(runs), notes)


def write_report(
    sections: Sequence[Section], folder: Path, title: str, *, maker: str = "hpcdat report"
) -> list[Path]:
    """Write report.md, report.csv and report.html.

    Args:
        sections: in their order.
        folder: made if not there.
        title: of the page.
        maker: the command that made it.

    Returns:
        The files.

    Raises:
        InputError: the folder cannot be made or written.
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
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            write_text(folder / name, text)
    except OSError as error:
        raise InputError(f"--out {folder} cannot be written: {error.strerror}") from None
    return [folder / name for name in texts]


def _notes(comparison: Comparison) -> list[str]:
    """What a reader has to know before comparing."""
    runs = comparison.runs
    missing: dict[str, list[str]] = {}
    for row in (compared.row for compared in comparison.rows if not compared.runs):
        missing.setdefault(row.label, []).append(row.setup)
    notes = [f"Paper: {comparison.table.hardware}.", *_hardware(runs)]
    others = _others(comparison)
    for names, told in others.items():
        which = "" if len(names) == len(runs) else f" ({', '.join(names)})"
        notes.append(f"Other work than the paper's{which}: {'; '.join(told)}.")
    if others:
        notes.append(
            "So seconds, bytes and accuracies are not to be held against the paper's; how the rows of one "
            "side compare with each other may be."
        )
    if missing:
        rows = [f"{label} ({'; '.join(setups)})" for label, setups in missing.items()]
        notes.append(f"Not run: {', '.join(rows)}.")
    if "speed_up" in comparison.table.quantities and any(run.job.exchange.overlap for run in runs):
        notes.append(
            "Some of our exchanges ran beside the backward pass: T - C leaves out computation that they hid."
        )
    if any(run.environment.get("emulated_links") for run in runs):
        notes.append("Emulated nodes share one machine's cores, which bounds the speed-up of computation.")
    notes += [meaning for key in comparison.table.quantities if (meaning := QUANTITIES[key].meaning)]
    if "aa" in comparison.table.quantities:
        notes += _notes_on_aa(runs)
    notes += _meanings(runs) if "c" in comparison.table.quantities else []
    counts = {len(row.runs) for row in comparison.rows if row.runs}
    ours = "single runs" if counts == {1} else f"means of {'/'.join(map(str, sorted(counts)))} runs a row"
    theirs = f"; the paper's are means of {comparison.table.seeds} seeds" if comparison.table.seeds else ""
    notes.append(f"Ours are {ours}{theirs}.")
    return [*notes, *(f"About the paper: {note}" for note in comparison.table.notes)]


def _others(comparison: Comparison) -> dict[tuple[str, ...], list[str]]:
    """Where the work of runs is not the paper's, by the names of all the runs that it is said of."""
    called = _names(comparison.runs)
    names: dict[str, list[str]] = {}
    for compared in comparison.rows:
        for run in compared.runs:
            for difference in differences({**comparison.table.work, **compared.row.work}, run):
                names.setdefault(difference, []).append(called[run.folder])
    others: dict[tuple[str, ...], list[str]] = {}
    for difference, whose in names.items():
        others.setdefault(tuple(whose), []).append(difference)
    return others


def _notes_on_aa(runs: Sequence[Run]) -> list[str]:
    """Of which runs AA is missing, or of fewer images than TA and RA."""
    without = [run.folder.name for run in runs if run.result.aa is None]
    if len(without) == len(runs):
        return ["AA (AutoAttack) was not measured."]
    notes = [f"AA (AutoAttack) was not measured of {', '.join(without)}."] if without else []
    parts = {run.result.aa_images for run in runs if run.result.aa_images not in (None, run.result.images)}
    if parts:
        notes.append(f"AA is of {'/'.join(f'{n:,}' for n in sorted(parts))} test images, an equal part.")
    return notes


def _meanings(runs: Sequence[Run]) -> list[str]:
    """What the columns are."""
    attacks = dict.fromkeys(f"{run.result.attack} on {run.result.images} test images" for run in runs)
    return [
        f"Our TA: clean test accuracy; our RA: under {'; '.join(attacks)}.",
        "C: seconds an epoch with gradients on their way, from when the last worker came to each exchange; "
        "T: of training as a whole; medians over the epochs. MB: MiB that all workers send in an iteration,"
        " computed.",
    ]


def _hardware(runs: Sequence[Run]) -> list[str]:
    """Of the runs, each kind once."""
    called = _names(runs)
    kinds: dict[str, list[str]] = {}
    for run in runs:
        kinds.setdefault(run.hardware, []).append(called[run.folder])
    alike = len(kinds) == 1
    return [
        f"Ours{'' if alike else ' (' + ', '.join(names) + ')'}: {hardware}."
        for hardware, names in kinds.items()
    ]


def _names(runs: Sequence[Run]) -> dict[Path, str]:
    """What to call runs: their folders, without what these have in common."""
    folders = {run.folder: run.folder.resolve() for run in runs}
    above = os.path.commonpath([folder.parent for folder in folders.values()])
    return {given: str(folder.relative_to(above)) for given, folder in folders.items()}


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
