"""The report as a page: tables with plots, as HTML, Markdown and CSV."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpu.section import Table
from hpcdat.report.pages import write_report
from hpcdat.report.plots import plot_bars
from hpcdat.report.section import Section


def write_page(report: dict[str, Any], tables: Mapping[str, Table], folder: Path) -> list[Path]:
    """Write the page.

    Args:
        report: with device, date and versions.
        tables: by their titles; one of two columns whose second is numbers gets a plot.
        folder: made if it does not exist.

    Returns:
        The files.

    Raises:
        InputError: the folder cannot be made or written.
    """
    sections = []
    notes = [f"{report['device']}, {report['date']}; torch {report['versions'].get('torch')}."]
    for index, (title, (header, rows)) in enumerate(tables.items(), start=1):
        bars = {row[0]: float(row[1]) for row in rows if len(row) == 2 and _is_number(row[1])}
        plot = plot_bars(bars, header[1]) if bars else ""
        sections.append(Section(f"table-{index}", title, header, rows, 1, plot, notes))
    return write_report(sections, folder, f"On one GPU: {report['device']}", maker="benchmarks/gpu")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
