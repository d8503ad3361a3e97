"""Robust accuracy beside the computation of the training, and the computation that an accuracy took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from hpcdat.evaluation.intervals import with_interval
from hpcdat.report.runs import evaluations_on_test_images, short_names
from hpcdat.report.section import Section, Table
from hpcdat.storage.run_folder import Result, RunFolder

TARGETS = (40, 44, 46)
"""RA (%) of the columns: near what published methods of fast adversarial training reach on CIFAR-10."""

NOTES = (
    "PFLOP: 10^15 floating-point operations of attacks and updates on all workers, in convolutions and "
    "matrix products (docs/papers/robustness-per-flop.md).",
    "PFLOP to RA: on the straight line between the evaluations before and after RA was first reached; `at "
    "most` if it was reached at the first one. evaluation.every: 1 evaluates after every epoch.",
)

Curve = Sequence[tuple[float, float]]
"""PFLOP and RA (%) of the evaluations of a run, in the order of training."""


def robustness_sections(results: Mapping[Path, Result]) -> list[Section]:
    """One section with a row for each run; none if no run counted its operations.

    Args:
        results: of runs, by folder.

    Raises:
        RunError: the metrics of a run are damaged.
    """
    if all(result.flops is None for result in results.values()):
        return []
    header = ["Method", "PFLOP", "TA (%)", "RA (%)", "AA (%)"]
    header += [f"PFLOP to RA {target} %" for target in TARGETS]
    header += ["Attack", "Run folder"]
    rows = [_row(folder, result) for folder, result in results.items()]
    names = short_names(list(results))
    named = [[[f"{names[path]}\n{row[0]}", *row[1:-1]]] for path, row in zip(results, rows, strict=True)]
    table = Table(["Run", *header[1:-1]], named, 1)
    return [Section("robustness-per-flop", "Robustness per FLOP", header, rows, 1, "", NOTES, table=table)]


def pflop_to(curve: Curve, target: float) -> str:
    """The computation after which a run first reached an RA.

    Args:
        curve: of the run, with a point or more.
        target: RA, %.

    Returns:
        PFLOP by linear interpolation, or that it was not reached.
    """
    for place, (pflop, ra) in enumerate(curve):
        if ra < target:
            continue
        if place == 0:
            return f"{pflop:.3g} (at most)"
        pflop_before, ra_before = curve[place - 1]
        share = (target - ra_before) / (ra - ra_before)
        return f"{pflop_before + share * (pflop - pflop_before):.3g}"
    return "not reached"


def read_curve(folder: RunFolder) -> Curve:
    """The evaluations of a run on its test images; empty if its operations were not counted.

    Raises:
        RunError: its metrics are damaged.
    """
    flops = {line["epoch"]: line.get("flops") for line in folder.metrics("epoch")}
    measured = evaluations_on_test_images(folder)
    return [
        (total / 1e15, 100 * measured[epoch]["ra"])
        for epoch in sorted(measured)
        if (total := flops.get(epoch)) is not None
    ]


def _row(path: Path, result: Result) -> list[str]:
    curve = read_curve(RunFolder(path))
    pflop = "not counted" if result.flops is None else f"{result.flops / 1e15:.3g}"
    accuracies = [
        "-" if share is None else with_interval(share, images or result.images)
        for share, images in (
            (result.ta, result.images),
            (result.ra, result.images),
            (result.aa, result.aa_images),
        )
    ]
    why_not = "not counted" if result.flops is None else "not measured"
    reached = [pflop_to(curve, target) if curve else why_not for target in TARGETS]
    return [result.method, pflop, *accuracies, *reached, result.conditions, str(path)]
