"""What ``hpcdat report --benchmark`` does."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from hpcdat.cli.worker_process import reported_once
from hpcdat.errors import Exit, shorten

if TYPE_CHECKING:
    from hpcdat.report.benchmarks.slower import Comparison
    from hpcdat.report.section import Section


def percentage(text: str) -> float:
    """Read a percentage, such as ``10%``.

    Returns:
        The share, 0.1 for 10 %.

    Raises:
        typer.BadParameter: it is not a percentage.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", text.strip())
    if match is None:
        raise typer.BadParameter(f"{shorten(repr(text))}: expected a percentage, such as 10%")
    return float(match[1]) / 100


def report_benchmarks(paths: Sequence[Path], out: Path | None, title: str, slower_by: float | None) -> None:
    """Print the tables of benchmark files, and write them to a folder if there is one.

    Args:
        paths: files, or folders of ``hpcdat submit --benchmark``.
        out: folder for pages and plots.
        title: of the pages.
        slower_by: largest share by which a row may be slower than the first file's; None: any.

    Raises:
        typer.Exit: a row is slower (1); the input is wrong, or no row could be compared (2).
    """

    def write() -> tuple[list[Section], list[Path], Comparison | None]:
        from hpcdat.report.benchmarks.files import read_benchmarks
        from hpcdat.report.benchmarks.plot import plot_times
        from hpcdat.report.benchmarks.sections import benchmark_sections
        from hpcdat.report.pages import write_report

        plot = plot_times if out else None
        sections, comparison = benchmark_sections(read_benchmarks(paths), slower_by, plot)
        return sections, write_report(sections, out, title) if out else [], comparison

    sections, files, comparison = reported_once(write)
    print("\n".join(section.markdown for section in sections), end="")
    for file in files:
        print(f"written: {file}")
    if comparison is None or slower_by is None:
        return
    if comparison.slower(slower_by):
        raise typer.Exit(Exit.FAILURE)
    reported_once(comparison.check)
