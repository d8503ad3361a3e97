"""The sweeps of a run as tables and plots in its folder."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hpcdat.evaluation.intervals import wilson
from hpcdat.evaluation.results import read_evaluations
from hpcdat.evaluation.sweep import sweep_name
from hpcdat.storage.atomic_files import write_text


def write_sweeps(evaluations: Path, folder: Path) -> list[Path]:
    """Write the measured sweeps of a run, each as .csv and .svg.

    Plain sweeps are ``ra-over-eps`` and ``ra-over-steps``, accumulating ones end in ``-accumulating``. Those
    with other settings than the run's own end in the number of the evaluation, from 2.

    Args:
        evaluations: file of :meth:`~hpcdat.evaluation.results.Results.write`.
        folder: of the files.

    Returns:
        The files written.

    Raises:
        OSError: one could not be written; names it.
    """
    # Plots take a second to import, and training draws none.
    from hpcdat.report.plots import plot_sweep

    written = []
    stored = sorted(read_evaluations(evaluations), key=lambda one: bool(one.get("changed")))
    first = 2 if stored and stored[0].get("changed") else 1
    for number, evaluation in enumerate(stored, start=first):
        suffix = f"-{number}" if evaluation.get("changed") else ""
        for over in ("eps", "steps"):
            for kind, ending in (("plain", ""), ("accumulating", "-accumulating")):
                if section := evaluation["sections"].get(sweep_name(over, kind)):
                    name, curve = f"ra-over-{over}{ending}{suffix}", dict(section["curve"])
                    write_text(folder / f"{name}.csv", _table(over, section))
                    plot = plot_sweep(over, {"": curve}, fine=in_255ths(curve))
                    write_text(folder / f"{name}.svg", plot)
                    written += [folder / f"{name}.csv", folder / f"{name}.svg"]
    return written


def in_255ths(radii: Iterable[float]) -> bool:
    """Whether to give radii in 255ths: not if one of them is a short decimal, such as 0.1, or all are 0."""
    others = [radius for radius in radii if radius]
    return bool(others) and not any(float(f"{radius:.3g}") == radius for radius in others)


def value_text(over: str, value: float, *, fine: bool) -> str:
    """A value of a sweep as text.

    Args:
        over: ``eps`` or ``steps``.
        value: a radius in [0, 1] units, or a number of steps.
        fine: whether radii are in 255ths.
    """
    if over == "eps" and fine and value:
        return f"{255 * value:.4g}/255"
    return f"{value:.4g}" if over == "eps" else str(value)


def _table(over: str, section: Mapping[str, Any]) -> str:
    """The sweep as CSV, with its attack in every row."""
    attack = {key: value for key, value in section["attack"].items() if key != over}
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([over, "ra", "low", "high", "images", *attack])
    for value, ra in section["curve"]:
        low, high = (f"{end:.4f}" for end in wilson(ra, section["images"]))
        writer.writerow([value, ra, low, high, section["images"], *attack.values()])
    return text.getvalue()
