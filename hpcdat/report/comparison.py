"""Runs compared with the rows of a paper's table: what was measured, what the paper states, their ratio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from statistics import fmean
from typing import Any, Literal

from hpcdat.errors import InputError, shorten
from hpcdat.report.papers import TABLES
from hpcdat.report.papers.paper_table import PaperRow, PaperTable
from hpcdat.report.quantities import QUANTITIES, SECONDS_PER_EPOCH, Values
from hpcdat.report.runs import Run, by_job, images_per_epoch

WORTH_REPORTING = 0.01
"""Share of an epoch's images above which a report says that they are left out."""


@dataclass(frozen=True)
class Compared:
    """A row of a comparison.

    Attributes:
        row: the paper's row; of runs beside it, one under their own name, without values.
        runs: the runs that reproduce it; their mean is reported.
        ours, paper: the known values, by quantity.
        table: the paper's table.
        beside: whether the runs reproduce no row and are shown below one.
    """

    row: PaperRow
    runs: Sequence[Run]
    ours: Values
    paper: Values
    table: PaperTable
    beside: bool = False

    def measured(self, quantity: str) -> list[float]:
        """Its values in the runs that have it."""
        return _values(self.runs, quantity, self.table)

    def ratio(self, quantity: str) -> float | None:
        """Ours over the paper's, if both are known."""
        if quantity not in self.ours or not self.paper.get(quantity):
            return None
        return self.ours[quantity] / self.paper[quantity]


@dataclass(frozen=True)
class Comparison:
    """A paper's table with the runs of its rows and, below a row, the runs shown for comparison."""

    table: PaperTable
    rows: Sequence[Compared]

    @property
    def runs(self) -> list[Run]:
        """All runs that reproduce a row."""
        return [run for row in self.rows for run in row.runs]


def compare(name: str, runs: Sequence[Run]) -> Comparison:
    """Match runs with the rows that their jobs say they reproduce, or that they are shown below.

    Args:
        name: name of the table.
        runs: the runs; those of other tables are ignored.

    Raises:
        InputError: there is no such table or row, or no run reproduces one of its rows.
    """
    if name not in TABLES:
        raise InputError(f"--table {shorten(name)}: there are {', '.join(TABLES)}")
    table = TABLES[name]
    standing, below = _placed(runs, table, "reproduces"), _placed(runs, table, "beside")
    if not any(standing.values()) and not any(below.values()):
        raise InputError(
            f"none of these runs reproduces a row of {name}: their jobs do not name one, as in reproduces: "
            f"[{name}/{table.name_of(table.rows[0])}]"
        )
    measured = {key: _measured(standing[key], table) for key in standing}
    if table.certified and not any(measured.values()):
        first = next(run.folder for runs in (*standing.values(), *below.values()) for run in runs)
        raise InputError(f"none of these runs is certified: run `hpcdat certify {first}` first")
    stated = stated_by(table)
    rows = []
    for row in table.rows:
        values, paper = _derived(row, measured, table), stated[row.key]
        rows.append(Compared(row, standing.get(row.key, []), values, paper, table))
        for label, alike in by_job(below.get(row.key, [])).items():
            own = replace(
                row,
                key=f"{row.key}: {label}",
                label=label,
                setup=f"beside {row.setup}",
                values={},
                spreads={},
            )
            values = _derived(own, measured | {own.key: _measured(alike, table)}, table)
            rows.append(Compared(own, alike, values, {}, table, beside=True))
    return Comparison(table, rows)


def stated_by(table: PaperTable) -> dict[str, Values]:
    """The values that a paper states for each row, and those derived from them."""
    values = {row.key: row.values for row in table.rows}
    return {row.key: _derived(row, values, table) for row in table.rows}


def differences(work: Mapping[str, Any], run: Run) -> list[str]:
    """The settings in which a run differs from a paper, described for the reader."""
    job, result = run.job, run.result
    # Held-out images belong to the paper's data as well, and a dropped last batch is reported by itself.
    left_out, images = max(
        (epoch.get("left_out_images", 0), epoch["images"] + epoch.get("left_out_images", 0))
        for epoch in run.epochs
    )
    measured: dict[str, object] = {
        "data.images": images + job.early_stopping.held_out,
        "model.name": job.model.name if job.model.width == 1 else f"{job.model.name} x {job.model.width:g}",
        # The weights may be those of an earlier epoch.
        "epochs": run.epochs[-1]["epoch"] - job.extra_warmup_epochs,
        "batch_size": result.batch,
        "global batch": result.batches * result.batch,
        "exchange.levels": job.exchange.levels_among(run.senders),
    }
    ours = {key: measured[key] if key in measured else attrgetter(key)(job) for key in work}
    different = [
        f"{key}: {_short(ours[key])}, the paper's {_short(value)}"
        for key, value in work.items()
        if ours[key] != value
    ]
    if left_out > WORTH_REPORTING * images:
        different.append(f"data.last_batch: drop leaves out {left_out / images:.1%} of an epoch's images")
    return different


def _placed(
    runs: Sequence[Run], table: PaperTable, setting: Literal["reproduces", "beside"]
) -> dict[str, list[Run]]:
    """By row of the table, the runs whose jobs name it in a setting.

    Raises:
        InputError: there is no such row.
    """
    placed: dict[str, list[Run]] = {row.key: [] for row in table.rows if not row.cited}
    for run in runs:
        named = [name.split("/") for name in getattr(run.job, setting)]
        for key in [table.key_of(row, run.job.attack.eps) for of, row in named if of == table.name]:
            if key not in placed:
                verb = "reproduces" if setting == "reproduces" else "is shown below"
                named_row = shorten(f"{table.name}/{key}")
                raise InputError(f"{run.folder} {verb} {named_row}, but the rows are: {', '.join(placed)}")
            placed[key].append(run)
    return placed


def _measured(runs: Sequence[Run], table: PaperTable) -> Values:
    """Means over the runs of a row, by quantity."""
    return {key: fmean(values) for key in table.quantities if (values := _values(runs, key, table))}


def _values(runs: Sequence[Run], quantity: str, table: PaperTable) -> list[float]:
    measure = QUANTITIES[quantity].measure
    return [
        value * _epoch_ratio(run, table) if quantity in SECONDS_PER_EPOCH else value
        for run in runs
        if measure and (value := measure(run)) is not None
    ]


def _epoch_ratio(run: Run, table: PaperTable) -> float:
    """Images of the paper's epoch over those of the run's; 1 unless the table states the paper's."""
    return table.epochs[1] / images_per_epoch(run) if table.epochs else 1.0


def _derived(row: PaperRow, values: Mapping[str, Values], table: PaperTable) -> Values:
    """A row's values and those derived from them."""
    own, reference = dict(values.get(row.key, {})), values.get(row.reference or "", {})
    for key in table.quantities:
        if derive := QUANTITIES[key].derive:
            try:
                own[key] = derive(own, reference)
            except (KeyError, ZeroDivisionError):
                continue
    return own


def _short(value: object) -> str:
    if value is None or isinstance(value, bool):
        return "none" if value is None else str(value).lower()
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
