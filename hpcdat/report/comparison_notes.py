"""The notes below a paper's table: what was run, on what, and what limits the comparison."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from hpcdat.evaluation.certification.clopper_pearson import largest_radius
from hpcdat.evaluation.intervals import with_interval
from hpcdat.report.certificates import CERTIFIED_COLUMNS
from hpcdat.report.comparison import Compared, Comparison, differences
from hpcdat.report.papers.paper_table import PaperTable
from hpcdat.report.quantities import QUANTITIES
from hpcdat.report.result_table import INTERVALS, SECONDS_AND_BYTES, USUAL_ATTACK
from hpcdat.report.runs import Run, folder_names, hardware_notes, varied


def comparison_notes(comparison: Comparison) -> list[str]:
    """Notes on what limits the comparison."""
    runs = comparison.runs
    missing: dict[str, list[str]] = {}
    for row in (compared.row for compared in comparison.rows if not (compared.runs or compared.row.cited)):
        missing.setdefault(row.label, []).append(row.setup)
    notes = [f"Paper: {comparison.table.hardware}.", *hardware_notes(runs), *_names(comparison)]
    others = _others(comparison)
    for names, texts in others.items():
        which = "" if len(names) == len(runs) else f" ({', '.join(names)})"
        notes.append(f"Differs from the paper{which}: {'; '.join(texts)}.")
    if others:
        notes.append(
            "So our seconds, bytes and accuracies are not comparable with the paper's; compare the rows "
            "within each side instead."
        )
    if below := [compared.row.label for compared in comparison.rows if compared.beside]:
        notes.append(
            "Rows that are not in the paper, each below the row whose exchange it replaces: "
            f"{', '.join(below)}."
        )
    if missing:
        rows = [f"{label} ({'; '.join(setups)})" for label, setups in missing.items()]
        notes.append(f"Not run: {', '.join(rows)}.")
    if "speed_up" in comparison.table.quantities and any(run.job.exchange.overlap for run in runs):
        notes.append(
            "Some of our exchanges overlapped the backward pass: T - C leaves out computation that hid them."
        )
    if comparison.table.epochs:
        _, images = comparison.table.epochs
        notes.append(f"Our C and T are scaled to {images:,} images, assumed to be the paper's epoch.")
    if any(run.environment.get("emulated_links") for run in runs):
        notes.append("Emulated nodes share one machine's cores, which bounds the speed-up of computation.")
    notes += [meaning for key in comparison.table.quantities if (meaning := QUANTITIES[key].meaning)]
    if comparison.table.certified:
        notes += [*_notes_on_certificates(comparison), INTERVALS]
    if "aa" in comparison.table.quantities:
        notes += _notes_on_aa(runs)
    quantities = comparison.table.quantities
    notes += _meanings(runs) if {"ta", "ra"} & set(quantities) else []
    notes += [" ".join(SECONDS_AND_BYTES)] if "c" in quantities else []
    known = [max(len(row.measured(key)) for key in quantities) for row in comparison.rows]
    counts = {number for number in known if number}
    several = f"means of {'/'.join(map(str, sorted(counts)))} runs a row, ± their standard deviation (n - 1)"
    theirs = f"; the paper's are means of {comparison.table.seeds} seeds" if comparison.table.seeds else ""
    notes.append(f"Ours are {'single runs' if counts == {1} else several}{theirs}.")
    for compared in comparison.rows:
        if differing := varied(compared.runs):
            texts = [f"{key}: {' / '.join(map(str, values))}" for key, values in differing.items()]
            notes.append(
                f"The runs of {compared.row.label}, {compared.row.setup}, differ in more than their seeds: "
                f"{'; '.join(texts)}."
            )
    return [*notes, *(f"About the paper: {note}" for note in comparison.table.notes)]


def differences_of(run: Run, compared: Compared) -> list[str]:
    """The settings in which a run of a row differs from the paper."""
    work = {**compared.table.work, **compared.row.work}
    return [*differences(work, run), *_other_epochs(run, compared.table)]


def setups(compared: Compared, comparison: Comparison) -> list[str]:
    """What distinguishes our runs of a row, as text without duplicates."""
    if not comparison.table.certified:
        return list(dict.fromkeys(run.setup for run in compared.runs))
    texts = [
        f"{len(c.counts):,} images, n = {c.n:,}, alpha = {c.alpha:g}: r up to "
        f"{largest_radius(c.n, c.alpha, c.sigma):.3f}"
        for run in compared.runs
        if (c := run.certified)
    ]
    return list(dict.fromkeys(texts))


def _names(comparison: Comparison) -> list[str]:
    """The folders of our runs, row by row."""
    called = folder_names(comparison.runs)
    rows = [
        f"{one.row.label}, {one.row.setup}: {', '.join(called[run.folder] for run in one.runs)}"
        for one in comparison.rows
        if one.runs
    ]
    return [f"Runs: {'; '.join(rows)}."]


def _others(comparison: Comparison) -> dict[tuple[str, ...], list[str]]:
    """The settings in which runs differ from the paper, by the names of these runs."""
    called = folder_names(comparison.runs)
    names: dict[str, list[str]] = {}
    for compared in comparison.rows:
        for run in compared.runs:
            for difference in differences_of(run, compared):
                names.setdefault(difference, []).append(called[run.folder])
    others: dict[tuple[str, ...], list[str]] = {}
    for difference, whose in names.items():
        others.setdefault(tuple(whose), []).append(difference)
    return others


def _notes_on_certificates(comparison: Comparison) -> list[str]:
    """What certificates are, and which runs have none."""
    notes = [
        f"{' '.join(CERTIFIED_COLUMNS)} Each certificate is right with probability 1 - alpha or more. The "
        "plot shows all images of a row's runs."
    ]
    without = [run.folder for run in comparison.runs if run.certified is None]
    if without:
        commands = ", ".join(f"`hpcdat certify {folder}`" for folder in without)
        notes.append(f"Not certified at the noise of their training, so not among the numbers: {commands}.")
    mixed = [row for row in comparison.rows if len(setups(row, comparison)) > 1]
    notes += [
        f"The runs of {row.row.label}, {row.row.setup}, were certified with different settings: their mean "
        "is not over seeds only."
        for row in mixed
    ]
    return notes


def _notes_on_aa(runs: Sequence[Run]) -> list[str]:
    """Which runs have no AA, and RA on the same images where AA is of fewer images than TA and RA."""
    called = folder_names(runs)
    without = [called[run.folder] for run in runs if run.result.aa is None]
    if len(without) == len(runs):
        return ["AA (AutoAttack) was not measured."]
    notes = [f"AA (AutoAttack) was not measured of {', '.join(without)}."] if without else []
    notes += [
        f"AA of {called[run.folder]} is not the standard version's: {run.result.aa_version}."
        for run in runs
        if run.result.aa is not None and run.result.aa_version
    ]
    for run in runs:
        result = run.result
        if result.aa is None or result.aa_images in (None, result.images):
            continue
        chosen = "the first ones" if run.job.takes_first_images else "balanced over the classes"
        same = "not measured" if result.aa_ra is None else with_interval(result.aa_ra, result.aa_images or 0)
        notes.append(
            f"AA of {called[run.folder]} is measured on {result.aa_images:,} test images, {chosen}; "
            f"RA on the same images: {same}."
        )
    return notes


def _meanings(runs: Sequence[Run]) -> list[str]:
    """What TA and RA are, with attack and number of images."""
    attacks = dict.fromkeys(f"{run.result.conditions} on {run.result.images:,} test images" for run in runs)
    return [f"Our TA: clean test accuracy; our RA: under {'; '.join(attacks)}. {USUAL_ATTACK} {INTERVALS}"]


def _other_epochs(run: Run, table: PaperTable) -> list[str]:
    """The images that a run sees in all, if the table states another number for the paper."""
    if table.epochs is None:
        return []
    ours, paper = sum(epoch["images"] for epoch in run.epochs), prod(table.epochs)
    return [] if ours == paper else [f"images in all epochs: {ours:,}, the paper's {paper:,} (assumed)"]
