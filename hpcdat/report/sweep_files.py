"""The sweeps of one evaluation as tables and plots."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpcdat.evaluation.sweep import sweep_name
from hpcdat.storage.atomic_files import write_text


def write_sweeps(sections: Mapping[str, Mapping[str, Any]], folder: Path) -> list[Path]:
    """Write the measured sweeps of an evaluation, each as .csv and .svg.

    Plain sweeps are ``ra-over-eps`` and ``ra-over-steps``; accumulating ones end in ``-accumulating``.

    Args:
        sections: of :class:`~hpcdat.evaluation.results.Results`.
        folder: of the files.

    Returns:
        The files written.

    Raises:
        OSError: one could not be written; names it.
    """
    # Plots take a second to import, and training draws none.
    from hpcdat.report.plots import plot_sweep

    written = []
    for over in ("eps", "steps"):
        for kind, ending in (("plain", ""), ("accumulating", "-accumulating")):
            if section := sections.get(sweep_name(over, kind)):
                table, plot = (folder / f"ra-over-{over}{ending}.{type_}" for type_ in ("csv", "svg"))
                write_text(table, _table(over, section))
                write_text(plot, plot_sweep(over, {"": dict(section["curve"])}))
                written += [table, plot]
    return written


def _table(over: str, section: Mapping[str, Any]) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([over, "ra", "images"])
    writer.writerows([value, ra, section["images"]] for value, ra in section["curve"])
    return text.getvalue()
