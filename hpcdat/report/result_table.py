"""The result table, with the columns of the DAT paper's Tables 1 and 4."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev

from tabulate import tabulate

from hpcdat.evaluation.intervals import CONFIDENCE, MANY_IMAGES, with_interval
from hpcdat.storage.evaluated import Evaluated, WeightsResult
from hpcdat.storage.run_folder import Result

HEADERS = [
    "Method",
    "p x q",
    "Batch",
    "Epochs",
    "TA (%)",
    "RA (%)",
    "AA (%)",
    "Fast bound (%)",
    "Attack",
    "Images",
    "C (s)",
    "T (s)",
    "Images/s",
    "Energy (Wh)",
    "Exchange",
    "MiB / iteration",
    "Run folder",
]
"""Headings of the columns."""

OPTIONAL = ("AA (%)", "Fast bound (%)", "Images/s", "Energy (Wh)")
"""Columns that a table leaves out if no run has a value in them."""

SECONDS_AND_BYTES = (
    "C: seconds per epoch in gradient exchanges; T: seconds per epoch of training (medians).",
    "MiB: 2^20 bytes, that all workers send per iteration, computed.",
)
"""The meaning of the columns C, T and MiB, for the notes below a table."""

THROUGHPUT = "Images/s: images that all workers together train on per second (median of the epochs)."
"""The meaning of the column, for the notes below a table."""

ENERGY = (
    "Energy: watt-hours of all epochs, without evaluations: GPUs (NVML), processors (RAPL, packages) and "
    "memory (RAPL, DRAM). Those of processors and memory include other programs on the nodes. What was not "
    "measured throughout is left out, such as fans, network and disks."
)
"""The meaning of the column, for the notes below a table."""

USUAL_ATTACK = "Attacks: steps of 2.5 eps / steps from one random start, unless others are stated."
"""What the description of an attack leaves out, for the notes below a table."""

FAST_BOUND = (
    "Fast bound: share that withstands a margin attack from twelve random starts, in the ball of the row's "
    "attack; an upper bound on robust accuracy, which is not AA."
)
"""The meaning of the column, for the notes below a table."""

INTERVALS = (
    f"[]: {100 * CONFIDENCE:g} % intervals (Wilson), where there are fewer than {MANY_IMAGES:,} images."
)
"""The meaning of intervals, for the notes below a table."""


def result_rows(
    runs: Mapping[Path, Result | WeightsResult], *, mean: bool = False
) -> tuple[list[str], list[list[str]]]:
    """Header and rows; without the columns of :data:`OPTIONAL` that no run has a value in.

    A run's first row is what its own job measured; below it are AA, if it was measured on fewer images, and
    other evaluations. All accuracies of a row are of the same images. Given weights have no training: their
    rows name their file and data instead.

    Args:
        runs: results by run folder.
        mean: add a row with mean and standard deviation: the runs are one job with several seeds.
    """
    rows = []
    for path, result in runs.items():
        for number, accuracies in enumerate(_accuracies(result)):
            # Training is the same for all rows of a run.
            training = _training(result) if number == 0 else [""] * 6
            rows.append([*_setup(result), *accuracies, *training, str(path)])
    trained = [result for result in runs.values() if isinstance(result, Result)]
    if mean and len(trained) > 1:
        rows.append(_mean_row(trained))
    shown = [
        place
        for place, name in enumerate(HEADERS)
        if name not in OPTIONAL or any(row[place] not in ("", "-") for row in rows)
    ]
    return [HEADERS[place] for place in shown], [[row[place] for place in shown] for row in rows]


def result_table(runs: Mapping[Path, Result | WeightsResult], *, mean: bool = False) -> str:
    """A Markdown table with the rows of :func:`result_rows` and a note on its columns.

    Args:
        runs: results by run folder.
        mean: add a row with mean and standard deviation: the runs are one job with several seeds.
    """
    header, rows = result_rows(runs, mean=mean)
    trained = [result for result in runs.values() if isinstance(result, Result)]
    note = [*accuracy_notes(list(runs.values())), *(training_notes(trained) if trained else ())]
    return tabulate(rows, header, tablefmt="github", disable_numparse=True) + "\n\n" + "\n".join(note)


def training_notes(results: Sequence[Result]) -> list[str]:
    """What seconds, images, watt-hours and bytes of some runs are, for the notes below their table."""
    notes = [*SECONDS_AND_BYTES]
    if any(result.images_per_second is not None for result in results):
        notes.append(THROUGHPUT)
    if any(energy_text(result) != "-" for result in results):
        notes.append(ENERGY)
    return notes


def accuracy_notes(results: Sequence[Result | WeightsResult]) -> list[str]:
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
    if any(one.fast_bound is not None for one in evaluations):
        notes.append(FAST_BOUND)
    if any(one.aa is not None and one.aa_ra is not None and one.aa > one.aa_ra for one in evaluations):
        notes.append("Where AA is above RA, PGD breaks images that AutoAttack does not: RA is the bound.")
    if any(one.fast_bound is not None and one.fast_bound > one.ra for one in evaluations):
        notes.append("Where the fast bound is above RA, PGD breaks images that the margin attack does not.")
    chosen = [result for result in results if isinstance(result, Result) and result.chosen_on_test]
    if chosen:
        methods = dict.fromkeys(result.method for result in chosen)
        notes.append(
            f"The weights of {', '.join(methods)} were chosen by their RA on these test images, which makes "
            "it too high; early_stopping.held_out chooses them on training images."
        )
    if any(isinstance(result, WeightsResult) for result in results):
        notes.append("Rows of weights: given ones, evaluated on the data in brackets; not trained here.")
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


def _setup(result: Result | WeightsResult) -> list[str]:
    """Method, p x q and batch of the training; for given weights, their file."""
    if isinstance(result, WeightsResult):
        return [f"weights {result.file}", "-", "-"]
    return [result.method, f"{result.p} x {result.q}", f"{result.batches} x {result.batch}"]


def _accuracies(result: Result | WeightsResult) -> list[list[str]]:
    """Epochs, TA, RA, AA, fast bound, attack and number of images of each evaluation of a run."""
    rows = []
    data = f" ({result.data})" if isinstance(result, WeightsResult) else ""
    for one in (result, *result.others):
        on_all = one.aa if one.aa_images == one.images else None
        rows.append(_row(one, (one.ta, one.ra, on_all, one.fast_bound), one.images, data))
        if one.aa is not None and on_all is None:
            rows.append(_row(one, (one.aa_ta, one.aa_ra, one.aa, None), one.aa_images or 0, data))
    return rows


def _row(one: Evaluated, accuracies: Sequence[float | None], images: int, data: str) -> list[str]:
    """A row of TA, RA, AA and the fast bound, each in [0, 1] or None."""
    shares = ["-" if share is None else with_interval(share, images) for share in accuracies]
    aa = accuracies[2]
    epoch = "-" if one.epoch is None else str(one.epoch)
    version = f"; {one.aa_version}" if aa is not None and one.aa_version else ""
    return [epoch, *shares, one.conditions + version, f"{images:,}{data}"]


def _training(result: Result | WeightsResult) -> list[str]:
    """C, T, images per second, energy, exchange and MiB."""
    if isinstance(result, WeightsResult):
        return ["-"] * 6
    sent = "-" if result.megabytes is None else f"{result.megabytes:.3g}"
    speed = "-" if result.images_per_second is None else f"{result.images_per_second:,.0f}"
    seconds = [_seconds(result.communication), _seconds(result.total)]
    return [*seconds, speed, energy_text(result), result.exchange, sent]


def energy_text(result: Result) -> str:
    """What was measured of a run's energy: ``12.3: GPUs 10.2, processors 2.1``."""
    parts = {"GPUs": result.gpu_wh, "processors": result.package_wh, "memory": result.dram_wh}
    known = {name: value for name, value in parts.items() if value is not None}
    if not known:
        return "-"
    return f"{sum(known.values()):.3g}: " + ", ".join(f"{name} {wh:.3g}" for name, wh in known.items())


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
        spread([None if r.fast_bound is None else 100 * r.fast_bound for r in results]),
        "",
        "",
        spread([r.communication for r in results]),
        spread([r.total for r in results]),
        spread([r.images_per_second for r in results], 0),
        "",
        "",
        "",
        f"seeds {', '.join(str(r.seed) for r in results)}",
    ]


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
