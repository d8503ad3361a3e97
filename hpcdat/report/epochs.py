"""TA and RA over the epochs: Figure 4 of the DAT paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hpcdat.errors import InputError, shorten
from hpcdat.report.papers.dat import FIGURE_4_DATA, FIGURE_4_LINES
from hpcdat.report.plots import EpochCurve, plot_over_epochs
from hpcdat.report.result_table import INTERVALS, USUAL_ATTACK, of_seeds
from hpcdat.report.runs import Run, evaluations_on_test_images, folder_names, varied
from hpcdat.report.section import Section
from hpcdat.storage.run_folder import RunFolder

EPOCHS_IN_TABLE = (1, 3)
"""Epochs in the table, and the last one. The paper: pre-training adapts "within just 3 epochs"."""

CAPTION = "TA and RA on the test images after each epoch, means over the seeds."
"""What the plot shows."""


def epoch_sections(runs: Sequence[Run]) -> list[Section]:
    """TA and RA on the test images over the epochs, of runs whose jobs reproduce ``dat-fig4/DATA-LINE``.

    Args:
        runs: the runs; those that reproduce nothing of Figure 4 are ignored.

    Returns:
        One section, or none if no run reproduces Figure 4.

    Raises:
        InputError: a job names a line that Figure 4 does not have.
        RunError: the metrics of a run are damaged.
    """
    panels: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        for data, line in _lines_of(run):
            panels.setdefault(data, {}).setdefault(line, []).append(run)
    if not panels:
        return []
    figures = {data: {line: _curve(seeds) for line, seeds in lines.items()} for data, lines in panels.items()}
    shown = [f"epoch {epoch}" for epoch in EPOCHS_IN_TABLE] + ["end"]
    columns = [f"{key}, {when}" for key in ("TA (%)", "RA (%)") for when in shown]
    header = ["data", "training", "seeds", "runs", *columns]
    names = folder_names(runs)
    rows, notes = [], ["± and bands: one standard deviation (n - 1) over the seeds."]
    for data, lines in panels.items():
        for line, some in lines.items():
            curve, seeds = figures[data][line], ", ".join(str(run.result.seed) for run in some)
            images, folders = some[0].result.images, ", ".join(names[run.folder] for run in some)
            cells = [
                _cell(curve[key], epoch, images) for key in ("ta", "ra") for epoch in (*EPOCHS_IN_TABLE, None)
            ]
            rows.append([data, line, seeds, folders, *cells])
            if len(curve["ta"]) == 1:
                notes.append(f"{data}, {line}: measured once only; evaluation.every: 1 measures every epoch.")
            if others := varied(some):
                texts = "; ".join(f"{key}: {' / '.join(map(str, values))}" for key, values in others.items())
                notes.append(f"The runs of {data}, {line}, differ in more than their seeds: {texts}.")
    measured = dict.fromkeys(
        str(run.recipe["RA"]) for lines in panels.values() for s in lines.values() for run in s
    )
    notes += [f"RA: under {'; '.join(measured)}. {USUAL_ATTACK}", INTERVALS]
    notes.append("The paper's text states no numbers of this figure, and neither rate nor batch size.")
    title = "TA and RA over the epochs, as in Figure 4 of the DAT paper"
    return [Section("epochs", title, header, rows, 2, plot_over_epochs(figures), notes, CAPTION)]


def _lines_of(run: Run) -> list[tuple[str, str]]:
    """Titles of the panels and lines of Figure 4 that a run's job reproduces."""
    found = []
    for name in run.job.reproduces:
        figure, _, key = name.partition("/")
        if figure != "dat-fig4":
            continue
        ending = next((line for line in FIGURE_4_LINES if key.endswith(f"-{line}")), None)
        if ending is None:
            raise InputError(
                f"{run.folder} reproduces {shorten(name)}, but a line of Figure 4 ends in one of: "
                f"{', '.join(FIGURE_4_LINES)}"
            )
        data = key.removesuffix(f"-{ending}")
        found.append((FIGURE_4_DATA.get(data, data), FIGURE_4_LINES[ending]))
    return found


def _curve(runs: Sequence[Run]) -> EpochCurve:
    """Accuracies on the test images (%) by epoch, of every seed."""
    curve: dict[str, dict[int, list[float]]] = {"ta": {}, "ra": {}}
    for run in runs:
        for epoch, one in evaluations_on_test_images(RunFolder(run.folder)).items():
            for key, values in curve.items():
                values.setdefault(epoch, []).append(100 * one[key])
    return curve


def _cell(by_epoch: Mapping[int, Sequence[float]], epoch: int | None, images: int) -> str:
    """Accuracy (%) after an epoch, None for the last one, with spread or interval; empty if not measured."""
    values = by_epoch.get(max(by_epoch, default=0) if epoch is None else epoch)
    return of_seeds(values, images) if values else ""
