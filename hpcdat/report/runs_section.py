"""All runs, and evaluations of given weights, as a section of a report, without a paper's numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from hpcdat.report.plots import plot_runs
from hpcdat.report.result_table import accuracy_notes, result_rows, training_notes
from hpcdat.report.runs import Run, hardware_notes, short_names
from hpcdat.report.section import Section, Table
from hpcdat.storage.evaluated import WeightsResult
from hpcdat.storage.run_folder import Result

NUMBERS = (
    "TA (%)",
    "RA (%)",
    "AA (%)",
    "Fast bound (%)",
    "Attack",
    "Images",
    "Epochs",
    "T (s)",
    "C (s)",
    "Images/s",
)
"""Columns of the page, those that the table has, between the run and what it sends."""
CAPTION = (
    "Left: the seconds of an epoch, C in gradient exchanges and the rest of T, which is computation unless "
    "exchanges overlapped it. Right: clean accuracy (TA) and robust accuracy (RA) of every run."
)


def runs_section(runs: Sequence[Run], given: Mapping[Path, WeightsResult]) -> Section:
    """A table of all runs, and of evaluations of given weights, without a paper's numbers.

    Args:
        runs: may be empty if there are evaluations.
        given: results of these evaluations by folder.
    """
    results: dict[Path, Result | WeightsResult] = {run.folder: run.result for run in runs}
    results |= given
    header, rows = result_rows(results)
    table = _page_table(header, rows, short_names(list(results)))
    notes = accuracy_notes([*results.values()])
    if not runs:
        return Section("weights", "Given weights", header, rows, 1, "", notes, table=table)
    notes += [" ".join(training_notes([run.result for run in runs])), *hardware_notes(runs)]
    return Section("runs", "Runs", header, rows, 1, plot_runs(runs), notes, caption=CAPTION, table=table)


def _page_table(header: Sequence[str], rows: Sequence[Sequence[str]], names: Mapping[Path, str]) -> Table:
    """The same with the run in front, its settings below its name."""
    shown = [name for name in (*NUMBERS, "MiB / iteration", "Energy (Wh)") if name in header]
    groups = []
    for row in rows:
        cells = dict(zip(header, row, strict=True))
        # Further evaluations of a run do not repeat its exchange, and one worker exchanges nothing.
        exchange = cells["Exchange"] if cells["p x q"] != "1 x 1" else ""
        settings = [", ".join([cells["Method"], *([exchange] if exchange not in ("", "-") else [])])]
        if cells["p x q"] != "-":
            settings.append(f"{cells['p x q']} workers, batch {cells['Batch']}")
        name = "\n".join([names[Path(cells["Run folder"])], *settings])
        groups.append([[name, *(cells[column] or "-" for column in shown)]])
    return Table(["Run", *shown], groups, 1)
