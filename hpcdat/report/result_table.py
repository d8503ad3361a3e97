"""The result table, with the columns of the DAT paper's Tables 1 and 4."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev

from tabulate import tabulate

from hpcdat.evaluation.intervals import CONFIDENCE, MANY_IMAGES, with_interval
from hpcdat.storage.evaluated import Evaluated
from hpcdat.storage.run_folder import Result

HEADERS = [
    "Method",
    "p x q",
    "Batch",
    "Epochs",
    "TA (%)",
    "RA (%)",
    "AA (%)",
    "Attack",
    "Images",
    "C (s)",
    "T (s)",
    "Exchange",
    "MiB / iteration",
    "Run folder",
]
"""Headings of the columns."""

SECONDS_AND_BYTES = (
    "C: seconds per epoch in gradient exchanges; T: seconds per epoch of training (medians).",
    "MiB: 2^20 bytes, that all workers send per iteration, computed.",
)
"""The meaning of the columns C, T and MiB, for the notes below a table."""

USUAL_ATTACK = "Attacks: steps of 2.5 eps / steps from one random start, unless others are stated."
"""What the description of an attack leaves out, for the notes below a table."""

INTERVALS = (
    f"[]: {100 * CONFIDENCE:g} % intervals (Wilson), where there are fewer than {MANY_IMAGES:,} images."
)
"""The meaning of intervals, for the notes below a table."""


def result_rows(runs: Mapping[Path, Result], *, mean: bool = False) -> tuple[list[str], list[list[str]]]:
    """Header and rows; without a column for AA if no run has it.

    A run's first row is what its own job measured; below it are AA, if it was measured on fewer images, and
    other evaluations. All accuracies of a row are of the same images.

    Args:
        runs: results by run folder.
        mean: add a row with mean and standard deviation: the runs are one job with several seeds.
    """
    rows = []
    for path, result in runs.items():
        for number, accuracies in enumerate(_accuracies(result)):
            # Training is the same for all rows of a run.
            training = _training(result) if number == 0 else ["", "", "", ""]
            setup = [result.method, f"{result.p} x {result.q}", f"{result.batches} x {result.batch}"]
            rows.append([*setup, *accuracies, *training, str(path)])
    if mean and len(runs) > 1:
        rows.append(_mean_row(list(runs.values())))
    place = HEADERS.index("AA (%)")
    if any(row[place] not in ("", "-") for row in rows):
        return HEADERS, rows
    return [*HEADERS[:place], *HEADERS[place + 1 :]], [[*row[:place], *row[place + 1 :]] for row in rows]


def result_table(runs: Mapping[Path, Result], *, mean: bool = False) -> str:
    """A Markdown table with the rows of :func:`result_rows` and a note on its columns.

    Args:
        runs: results by run folder.
        mean: add a row with mean and standard deviation: the runs are one job with several seeds.
    """
    header, rows = result_rows(runs, mean=mean)
    note = [*accuracy_notes(list(runs.values())), *SECONDS_AND_BYTES]
    return tabulate(rows, header, tablefmt="github", disable_numparse=True) + "\n\n" + "\n".join(note)


def accuracy_notes(results: Sequence[Result]) -> list[str]:
    """What TA, RA, AA and intervals of some runs are, for the notes below their table."""
    evaluations = [one for result in results for one in (result, *result.others)]
    notes = [
        "TA: clean test accuracy. RA: under the row's attack. A row's accuracies are of the same images.",
        USUAL_ATTACK,
    ]
    if attacked := [one for one in evaluations if one.aa is not None]:
        versions = dict.fromkeys(one.aa_version or "AutoAttack's standard version" for one in attacked)
        notes.append(
            f"AA: under {' or '.join(versions)} in the ball of the row's attack; if on fewer images, in"
            " a row of its own with TA and RA on these."
        )
    if any(one.aa is not None and one.aa_ra is not None and one.aa > one.aa_ra for one in evaluations):
        notes.append("Where AA is above RA, PGD breaks images that AutoAttack does not: RA is the bound.")
    if any(result.chosen_on_test for result in results):
        methods = dict.fromkeys(result.method for result in results if result.chosen_on_test)
        notes.append(
            f"The weights of {', '.join(methods)} were chosen by their RA on these test images, which makes "
            "it too high; early_stopping.held_out chooses them on training images."
        )
    if any(result.others for result in results):
        notes.append("A run's first row is what its own job measures, the others are further evaluations.")
    if any(result.changed for result in results):
        notes.append("A run whose first row has changed settings was not measured with its own.")
    if any(min(one.images, one.aa_images or one.images) < MANY_IMAGES for one in evaluations):
        notes.append(INTERVALS)
    return notes


def of_seeds(values: Sequence[float], images: int) -> str:
    """An accuracy as text: of several seeds mean and standard deviation, of a single one with its interval.

    Args:
        values: in %, one per seed.
        images: number of images.
    """
    return mean_and_spread(values, 2) if len(values) > 1 else with_interval(values[0] / 100, images)


def mean_and_spread(values: Sequence[float], digits: int) -> str:
    """The mean and, for several values, the standard deviation (n - 1)."""
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{fmean(values):.{digits}f}{spread}"


def _accuracies(result: Result) -> list[list[str]]:
    """Epochs, TA, RA, AA, attack and number of images of each evaluation of a run."""
    rows = []
    for one in (result, *result.others):
        on_all = one.aa if one.aa_images == one.images else None
        rows.append(_row(one, one.ta, one.ra, on_all, one.images))
        if one.aa is not None and on_all is None:
            rows.append(_row(one, one.aa_ta, one.aa_ra, one.aa, one.aa_images or 0))
    return rows


def _row(one: Evaluated, ta: float | None, ra: float | None, aa: float | None, images: int) -> list[str]:
    shares = ["-" if share is None else with_interval(share, images) for share in (ta, ra, aa)]
    version = f"; {one.aa_version}" if aa is not None and one.aa_version else ""
    return [str(one.epoch), *shares, one.conditions + version, f"{images:,}"]


def _training(result: Result) -> list[str]:
    """C, T, exchange and MiB."""
    sent = "-" if result.megabytes is None else f"{result.megabytes:.3g}"
    return [_seconds(result.communication), _seconds(result.total), result.exchange, sent]


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
        "",
        "",
        spread([r.communication for r in results]),
        spread([r.total for r in results]),
        "",
        "",
        f"seeds {', '.join(str(r.seed) for r in results)}",
    ]


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
