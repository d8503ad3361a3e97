"""The result table, with the columns of the DAT paper's Tables 1 and 4."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev

from tabulate import tabulate

from hpcdat.storage.run_folder import Result

HEADERS = [
    "Method",
    "p x q",
    "Batch",
    "Epochs",
    "TA (%)",
    "RA (%)",
    "AA (%)",
    "C (s)",
    "T (s)",
    "Exchange",
    "MB / iteration",
    "Run folder",
]
"""Headings of the columns."""

SECONDS_AND_BYTES = (
    "C: seconds per epoch in gradient exchanges; T: seconds per epoch of training (medians).",
    "MB: MiB that all workers send per iteration, computed.",
)
"""The meaning of the columns C, T and MB, for the notes below a table."""


def result_rows(runs: Mapping[Path, Result], *, mean: bool = False) -> tuple[list[str], list[list[str]]]:
    """Header and rows, one per run; without a column for AA if no run has it.

    Args:
        runs: results by run folder.
        mean: add a row with mean and standard deviation: the runs are one job with several seeds.
    """
    rows = [
        [
            result.method,
            f"{result.p} x {result.q}",
            f"{result.batches} x {result.batch}",
            str(result.epoch),
            f"{100 * result.ta:.2f}",
            f"{100 * result.ra:.2f}",
            "-" if result.aa is None else f"{100 * result.aa:.2f}",
            _seconds(result.communication),
            _seconds(result.total),
            result.exchange,
            "-" if result.megabytes is None else f"{result.megabytes:.3g}",
            str(path),
        ]
        for path, result in runs.items()
    ]
    if mean and len(runs) > 1:
        rows.append(_mean_row(list(runs.values())))
    if any(result.aa is not None for result in runs.values()):
        return HEADERS, rows
    place = HEADERS.index("AA (%)")
    return [*HEADERS[:place], *HEADERS[place + 1 :]], [[*row[:place], *row[place + 1 :]] for row in rows]


def result_table(runs: Mapping[Path, Result], *, mean: bool = False) -> str:
    """A Markdown table with one row per run and a note on its columns.

    Args:
        runs: results by run folder.
        mean: add a row with mean and standard deviation: the runs are one job with several seeds.
    """
    header, rows = result_rows(runs, mean=mean)
    attacks = "; ".join(dict.fromkeys(f"{r.attack} on {r.images} test images" for r in runs.values()))
    counts = sorted({r.aa_images for r in runs.values() if r.aa_images is not None})
    autoattack = f" AA: under AutoAttack on {'/'.join(map(str, counts))} test images." if counts else ""
    note = [f"TA: clean test accuracy. RA: under {attacks}.{autoattack}", *SECONDS_AND_BYTES]
    return tabulate(rows, header, tablefmt="github", disable_numparse=True) + "\n\n" + "\n".join(note)


def in_pixel_units(eps: float) -> str:
    """A radius in its usual notation: ``0.2``, or ``8/255`` if that is shorter."""
    if float(f"{eps:.3g}") == eps or abs(eps * 255 - round(eps * 255)) > 1e-6:
        return f"{eps:.4g}"
    return f"{round(eps * 255)}/255"


def mean_and_spread(values: Sequence[float], digits: int) -> str:
    """The mean and, for several values, the standard deviation (n - 1)."""
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{fmean(values):.{digits}f}{spread}"


def _mean_row(results: list[Result]) -> list[str]:
    """Mean and standard deviation (n - 1) over the seeds."""

    def spread(values: list[float | None], digits: int = 2) -> str:
        known = [value for value in values if value is not None]
        return mean_and_spread(known, digits) if len(known) > 1 else "-"

    return [
        "mean ± s.d.",
        "",
        "",
        "",
        spread([100 * r.ta for r in results]),
        spread([100 * r.ra for r in results]),
        spread([None if r.aa is None else 100 * r.aa for r in results]),
        spread([r.communication for r in results]),
        spread([r.total for r in results]),
        "",
        "",
        f"seeds {', '.join(str(r.seed) for r in results)}",
    ]


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
