"""The quantities that a report compares: read from a run, or computed from others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hpcdat.report.certificates import RADII
from hpcdat.report.papers.dat import accuracy_at
from hpcdat.report.runs import Run

Values = Mapping[str, float]
"""Values of a row by the name of their quantity, a key of :data:`QUANTITIES`."""


@dataclass(frozen=True)
class Quantity:
    """A column: measured in a run, or derived from a row's other values, alike for ours and the paper's.

    Attributes:
        header: column heading.
        digits: decimal places.
        measure: reads it from a run; None if it was not measured.
        derive: computes it from a row's values and those of its reference row.
        meaning: note for the reader, if any.
        images: number of test images of which it is a share in %; None if it is no accuracy on them.
    """

    header: str
    digits: int
    measure: Callable[[Run], float | None] | None = None
    derive: Callable[[Values, Values], float] | None = None
    meaning: str | None = None
    images: Callable[[Run], int | None] | None = None


SECONDS_PER_EPOCH = ("c", "t")
"""Quantities that are proportional to the number of images in an epoch."""


def training_seconds(run: Run) -> float:
    """Seconds of all epochs, without evaluations."""
    return float(sum(epoch["total_seconds"] for epoch in run.epochs))


def _throughput(run: Run) -> float | None:
    seconds = training_seconds(run)
    return sum(epoch["images"] for epoch in run.epochs) / seconds / 1000 if seconds else None


def _training_accuracy(run: Run) -> float | None:
    share = run.epochs[-1].get("training_accuracy")
    return None if share is None else 100 * share


def _certified_accuracy(radius: float) -> Callable[[Run], float | None]:
    return lambda run: 100 * run.certified.accuracy(radius) if run.certified else None


def _test_images(run: Run) -> int:
    return run.result.images


def _certified_images(run: Run) -> int | None:
    return len(run.certified.counts) if run.certified else None


def _of_reference(quantity: str) -> Callable[[Values, Values], float]:
    return lambda row, reference: row[quantity] / reference[quantity]


QUANTITIES: dict[str, Quantity] = {
    "ta": Quantity("TA (%)", 2, measure=lambda run: 100 * run.result.ta, images=_test_images),
    "ra": Quantity("RA (%)", 2, measure=lambda run: 100 * run.result.ra, images=_test_images),
    "aa": Quantity(
        "AA (%)",
        2,
        measure=lambda run: None if run.result.aa is None else 100 * run.result.aa,
        images=lambda run: run.result.aa_images,
    ),
    "c": Quantity(
        "C (s)", 2, measure=lambda run: run.result.communication if run.result.p * run.result.q > 1 else None
    ),
    "t": Quantity("T (s)", 2, measure=lambda run: run.result.total),
    "mb": Quantity("MiB / iteration", 1, measure=lambda run: run.result.megabytes),
    "training": Quantity(
        "training (s)",
        1,
        measure=training_seconds,
        meaning="Our training time is that of all epochs, without evaluation.",
    ),
    "throughput": Quantity("images / ms", 3, measure=_throughput),
    "training_accuracy": Quantity(
        "training accuracy (%)",
        2,
        measure=_training_accuracy,
        meaning="Our training accuracy is that of the clean images of the last epoch as they passed through "
        "training: with its augmentation, and by weights that were still changing.",
    ),
    "gap": Quantity(
        "generalisation gap", 2, derive=lambda row, reference: row["training_accuracy"] - row["ta"]
    ),
    "speed_up": Quantity(
        "speed-up of T - C", 2, derive=lambda row, reference: reference["t"] / (row["t"] - row["c"])
    ),
    "c_of_reference": Quantity("C, of 32 bits", 3, derive=_of_reference("c")),
    "mb_of_reference": Quantity("MiB, of 32 bits", 3, derive=_of_reference("mb")),
    "training_of_reference": Quantity("training / vanilla", 2, derive=_of_reference("training")),
    **{
        accuracy_at(radius): Quantity(
            f"CA (%), r = {radius:g}", 1, measure=_certified_accuracy(radius), images=_certified_images
        )
        for radius in RADII
    },
    "acr": Quantity("ACR", 3, measure=lambda run: run.certified.average_radius if run.certified else None),
    "throughput_of_reference": Quantity("throughput / DisAdv", 2, derive=_of_reference("throughput")),
}
"""All quantities by the names that the papers' tables use."""
