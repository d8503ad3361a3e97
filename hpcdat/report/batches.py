"""Accuracy against the global batch: Figures 1, 2 and A1 of the DAT paper."""

from __future__ import annotations

from collections.abc import Sequence

from hpcdat.report.plots import plot_over_batch
from hpcdat.report.result_table import INTERVALS, USUAL_ATTACK, of_seeds
from hpcdat.report.runs import Run, folder_names, varied
from hpcdat.report.section import Section

CAPTION = "TA and RA of each method against the images of a step of all workers, means over the seeds."
"""What the plot shows."""


def batch_sections(runs: Sequence[Run]) -> list[Section]:
    """A section with a line for each method whose runs differ in global batch; none without such a method."""
    methods: dict[str, list[Run]] = {}
    for run in runs:
        methods.setdefault(run.result.method, []).append(run)
    lines: dict[str, dict[int, list[Run]]] = {}
    for method, some in methods.items():
        if len({run.global_batch for run in some}) > 1:
            lines |= _lines(method, some)
    if not lines:
        return []
    header, rows = ["method", "global batch", "seeds", "runs", "TA (%)", "RA (%)"], []
    names = folder_names(runs)
    curves: dict[str, dict[int, dict[str, list[float]]]] = {}
    for label, by_batch in lines.items():
        for batch, seeds in by_batch.items():
            ta, ra = ([100 * getattr(run.result, key) for run in seeds] for key in ("ta", "ra"))
            curves.setdefault(label, {})[batch] = {"ta": ta, "ra": ra}
            numbers = ", ".join(str(run.result.seed) for run in seeds)
            images, folders = seeds[0].result.images, ", ".join(names[run.folder] for run in seeds)
            rows.append([label, f"{batch:,}", numbers, folders, of_seeds(ta, images), of_seeds(ra, images)])
    title = "Accuracy over the global batch, as in Figures 1, 2 and A1 of the DAT paper"
    return [Section("batches", title, header, rows, 1, plot_over_batch({"": curves}), _notes(lines), CAPTION)]


def _lines(method: str, runs: Sequence[Run]) -> dict[str, dict[int, list[Run]]]:
    """Runs by label and global batch; those with the same label and batch differ in their seeds only."""
    at: dict[int, list[Run]] = {}
    for run in sorted(runs, key=lambda run: run.global_batch):
        at.setdefault(run.global_batch, []).append(run)
    different = sorted({key for some in at.values() for key in varied(some)})
    lines: dict[str, dict[int, list[Run]]] = {}
    for batch, some in at.items():
        for run in some:
            label = ", ".join([method, *(f"{key} {run.recipe[key]}" for key in different)])
            lines.setdefault(label, {}).setdefault(batch, []).append(run)
    return lines


def _notes(lines: dict[str, dict[int, list[Run]]]) -> list[str]:
    """What the bars are, and what else changes along a line."""
    notes = ["± and error bars: one standard deviation (n - 1) over the seeds."]
    for label, by_batch in lines.items():
        runs = [run for some in by_batch.values() for run in some]
        changes = [
            f"{key} ({' / '.join(map(str, values))})"
            for key, values in varied(runs).items()
            if key != "batch_size"
        ]
        if changes:
            notes.append(f"Along the line of {label}, more than the batch changes: {', '.join(changes)}.")
    measured = dict.fromkeys(
        run.recipe["RA"] for by_batch in lines.values() for some in by_batch.values() for run in some
    )
    return [*notes, f"RA: under {'; '.join(measured)}. {USUAL_ATTACK}", INTERVALS]
