"""The certificates of a run as data, written by ``hpcdat certify`` and read by reports."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from hpcdat.errors import InputError
from hpcdat.evaluation.certification.certificates import Certified, Counts
from hpcdat.evaluation.certification.clopper_pearson import largest_radius
from hpcdat.evaluation.intervals import wilson
from hpcdat.report.papers import dat
from hpcdat.storage.atomic_files import write_text

RADII = (0.0, *dat.RADII)
"""The radii of Table 2, and 0: the accuracy without perturbation."""

CERTIFIED_COLUMNS = (
    "CA: images that the smoothed classifier gets right and certifies to an l2 radius of r or more ([0, 1] "
    "units).",
    "ACR: mean certified radius, 0 where the classifier is wrong or abstains.",
)
"""The meaning of the columns of certified accuracy, for the notes below a table."""


def write_certificates(certified: Sequence[Certified], folder: Path) -> None:
    """Write certified.json (a summary) and certified.csv (every image).

    Args:
        certified: one for each noise level.
        folder: of the files.

    Raises:
        OSError: a file could not be written.
    """
    summary = [
        {
            "sigma": one.sigma,
            "changed": one.changed,
            "weights": one.weights,
            "n0": one.n0,
            "n": one.n,
            "alpha": one.alpha,
            "images": len(one.counts),
            "abstained": one.abstained,
            "average_radius": one.average_radius,
            "largest_radius": largest_radius(one.n, one.alpha, one.sigma),
            "accuracy": {f"{radius:g}": one.accuracy(radius) for radius in RADII},
            "interval": {f"{radius:g}": wilson(one.accuracy(radius), len(one.counts)) for radius in RADII},
        }
        for one in certified
    ]
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["sigma", "image", "label", "class_a", "count", "n", "radius"])
    for one in certified:
        for counts, radius in zip(one.counts, one.radii, strict=True):
            text = "abstains" if np.isnan(radius) else f"{radius:.6f}"
            writer.writerow([one.sigma, counts.image, counts.label, counts.top, counts.count, one.n, text])
    # In this order, in which they are read.
    write_text(folder / "certified.json", json.dumps(summary, indent=2) + "\n")
    write_text(folder / "certified.csv", table.getvalue())


def read_certificates(folder: Path) -> list[Certified]:
    """Read the certificates of a folder, one for each noise level; none if there are no files.

    Raises:
        InputError: a file is damaged.
    """
    summary, table = folder / "certified.json", folder / "certified.csv"
    if not summary.exists():
        return []
    try:
        with table.open(newline="") as file:
            rows = csv.DictReader(file)
            certified = []
            for one in json.loads(summary.read_text()):
                counts = [_counts(row, one["sigma"]) for row in islice(rows, one["images"])]
                if len(counts) != one["images"] or not counts:
                    raise ValueError(f"{len(counts)} images at sigma {one['sigma']}, not {one['images']}")
                changed, weights = tuple(one.get("changed", ())), one.get("weights")
                settings = one["sigma"], one["n0"], one["n"], one["alpha"]
                certified.append(Certified(*settings, counts, changed, weights))
            return certified
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{summary} and {table.name} cannot be read ({error}): `hpcdat certify` writes them again"
        ) from None


def _counts(row: dict[str, str], sigma: float) -> Counts:
    """The counts of one image.

    Raises:
        ValueError, KeyError, TypeError: the row is damaged or of another noise level.
    """
    if float(row["sigma"]) != sigma:
        raise ValueError(f"a row at sigma {row['sigma']}, not {sigma}")
    return Counts(int(row["image"]), int(row["label"]), int(row["class_a"]), int(row["count"]))
