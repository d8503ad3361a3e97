"""Runs compared with the rows of a paper's table: what was measured, what the paper states, their ratio."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from hpcdat.config.job import Job
from hpcdat.config.sections import by_name
from hpcdat.errors import InputError
from hpcdat.evaluation.certification.certificates import Certified
from hpcdat.report.certificates import RADII, read_certificates
from hpcdat.report.papers import TABLES
from hpcdat.report.papers.dat import accuracy_at
from hpcdat.report.papers.paper_table import PaperRow, PaperTable
from hpcdat.storage.run_folder import Result, RunError, RunFolder


@dataclass(frozen=True)
class Run:
    """A finished run, as read for a report.

    Attributes:
        folder: of the run.
        job: resolved.
        result: TA, RA, C, T, bytes.
        environment: the hardware and software that it ran on.
        epochs: its metrics, one entry per epoch.
    """

    folder: Path
    job: Job
    result: Result
    environment: Mapping[str, Any]
    epochs: Sequence[Mapping[str, Any]]

    @property
    def setup(self) -> str:
        """Workers, batch and exchange, such as ``6 x 6, batch 36 x 85, ring, 32 bits``."""
        result = self.result
        lanes = self.job.exchange.lane_bits
        exchange = f", {result.exchange}" + (f" in lanes of {lanes}" if lanes else "")
        exchange = exchange if result.p * result.q > 1 else ""
        return f"{result.p} x {result.q}, batch {result.batches} x {result.batch}{exchange}"

    @property
    def senders(self) -> int:
        """Workers that cross the network: one a node in a hierarchical exchange, otherwise all."""
        result = self.result
        return result.p if self.job.exchange.protocol == "hierarchical" else result.p * result.q

    @property
    def global_batch(self) -> int:
        """Images per step, of all workers."""
        return self.result.batches * self.result.batch

    @property
    def recipe(self) -> dict[str, Any]:
        """The settings that its accuracies depend on, except seed and global batch, by name."""
        trained = {
            key: value
            for key, (value, may_change) in by_name(self.job).items()
            if not may_change and not key.startswith("evaluation.") and key not in ("seed", "virtual_workers")
        }
        return trained | {"RA": f"{self.result.attack} on {self.result.images} test images"}

    @cached_property
    def certified(self) -> Certified | None:
        """The certificates at the noise level of its training; None if there are none.

        Raises:
            InputError: their files are damaged.
        """
        found = read_certificates(RunFolder(self.folder).certification_folder)
        return next((one for one in found if one.sigma == self.job.smoothing.sigma), None)

    @property
    def hardware(self) -> str:
        """Nodes, devices and links, as text."""
        workers = self.environment["workers"]
        devices = ", ".join(dict.fromkeys(worker["device"] for worker in workers))
        nodes = self.environment["nodes"]
        links = self.environment.get("emulated_links")
        if links:
            cores = max(worker["cpus"] for worker in workers)
            where = f"on one machine ({cores} cores, {devices}), emulated {links}"
            return f"{nodes} emulated {_plural('node', nodes)} {where}"
        return (
            f"{nodes} {_plural('node', nodes)}, {len(workers)} {_plural('worker', len(workers))}: {devices}"
        )


def read_run(folder: Path) -> Run:
    """Read the run in a folder.

    Raises:
        RunError: it is not a run folder, the run has no result yet, or its records are damaged.
    """
    files = RunFolder(folder)
    result, environment, epochs = files.read_result(), files.environment(), files.metrics("epoch")
    if not _tells_hardware(environment):
        raise RunError(f"{files.environment_file} does not say what the run ran on")
    if not epochs or not all({"images", "total_seconds"} <= epoch.keys() for epoch in epochs):
        raise RunError(f"{files.metrics_file} does not have the run's epochs")
    return Run(folder, files.read_job([]), result, environment, epochs)


def images_per_epoch(run: Run) -> int:
    """Images that the run trains on in a full epoch."""
    images: int = max(epoch["images"] for epoch in run.epochs)
    return images


def folder_names(runs: Sequence[Run]) -> dict[Path, str]:
    """Short names of runs: their folders without the common prefix."""
    folders = {run.folder: run.folder.resolve() for run in runs}
    above = os.path.commonpath([folder.parent for folder in folders.values()])
    return {given: str(folder.relative_to(above)) for given, folder in folders.items()}


def varied(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """The settings in which runs differ, with their values."""
    values: dict[str, list[Any]] = {}
    for run in runs:
        for key, value in run.recipe.items():
            if value not in values.setdefault(key, []):
                values[key].append(value)
    return {key: told for key, told in values.items() if len(told) > 1}


def _tells_hardware(environment: Any) -> bool:
    if not isinstance(environment, dict) or not isinstance(environment.get("nodes"), int):
        return False
    workers = environment.get("workers")
    return isinstance(workers, list) and all(
        isinstance(worker, dict) and {"device", "cpus"} <= worker.keys() for worker in workers
    )


Values = Mapping[str, float]
WORTH_REPORTING = 0.01
"""Share of an epoch's images above which a report says that they are left out."""


@dataclass(frozen=True)
class Quantity:
    """A column: measured in a run, or derived from a row's other values, alike for ours and the paper's.

    Attributes:
        header: column heading.
        digits: decimal places.
        measure: reads it from a run; None if it was not measured.
        derive: computes it from a row's values and those of its reference row.
        meaning: note for the reader, if any.
    """

    header: str
    digits: int
    measure: Callable[[Run], float | None] | None = None
    derive: Callable[[Values, Values], float] | None = None
    meaning: str | None = None


SECONDS_PER_EPOCH = ("c", "t")
"""Quantities that grow with the images of an epoch."""


def _training_seconds(run: Run) -> float:
    return float(sum(epoch["total_seconds"] for epoch in run.epochs))


def _throughput(run: Run) -> float | None:
    seconds = _training_seconds(run)
    return sum(epoch["images"] for epoch in run.epochs) / seconds / 1000 if seconds else None


def _training_accuracy(run: Run) -> float | None:
    share = run.epochs[-1].get("training_accuracy")
    return None if share is None else 100 * share


def _certified_accuracy(radius: float) -> Callable[[Run], float | None]:
    return lambda run: 100 * run.certified.accuracy(radius) if run.certified else None


def _of_reference(quantity: str) -> Callable[[Values, Values], float]:
    return lambda row, reference: row[quantity] / reference[quantity]


QUANTITIES: dict[str, Quantity] = {
    "ta": Quantity("TA (%)", 2, measure=lambda run: 100 * run.result.ta),
    "ra": Quantity("RA (%)", 2, measure=lambda run: 100 * run.result.ra),
    "aa": Quantity("AA (%)", 2, measure=lambda run: None if run.result.aa is None else 100 * run.result.aa),
    "c": Quantity(
        "C (s)", 2, measure=lambda run: run.result.communication if run.result.p * run.result.q > 1 else None
    ),
    "t": Quantity("T (s)", 2, measure=lambda run: run.result.total),
    "mb": Quantity("MB / iteration", 1, measure=lambda run: run.result.megabytes),
    "training": Quantity(
        "training (s)",
        1,
        measure=_training_seconds,
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
    "mb_of_reference": Quantity("MB, of 32 bits", 3, derive=_of_reference("mb")),
    "training_of_reference": Quantity("training / vanilla", 2, derive=_of_reference("training")),
    **{
        accuracy_at(radius): Quantity(f"CA (%), r = {radius:g}", 1, measure=_certified_accuracy(radius))
        for radius in RADII
    },
    "acr": Quantity("ACR", 3, measure=lambda run: run.certified.average_radius if run.certified else None),
    "throughput_of_reference": Quantity("throughput / DisAdv", 2, derive=_of_reference("throughput")),
}


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
    """A paper's table with the runs that reproduce its rows, and below a row those that are beside it."""

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
        raise InputError(f"--table {name}: there are {', '.join(TABLES)}")
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
        for label, alike in _by_name(below.get(row.key, [])).items():
            own = replace(row, key=f"{row.key}: {label}", label=label, setup=f"beside {row.setup}", values={})
            values = _derived(own, measured | {own.key: _measured(alike, table)}, table)
            rows.append(Compared(own, alike, values, {}, table, beside=True))
    return Comparison(table, rows)


def stated_by(table: PaperTable) -> dict[str, Values]:
    """The values that a paper states for each row, and those derived from them."""
    values = {row.key: row.values for row in table.rows}
    return {row.key: _derived(row, values, table) for row in table.rows}


def differences(work: Mapping[str, Any], run: Run) -> list[str]:
    """Where the work of a run is not a paper's, in words."""
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
                verb = "reproduces" if setting == "reproduces" else "stands beside"
                raise InputError(
                    f"{run.folder} {verb} {table.name}/{key}, but the rows are: {', '.join(placed)}"
                )
            placed[key].append(run)
    return placed


def _by_name(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Runs by the name of their folder, of several seeds by that of the folder above."""
    named: dict[str, list[Run]] = {}
    for run in runs:
        folder = run.folder.resolve()
        named.setdefault((folder.parent if folder.name.startswith("seed-") else folder).name, []).append(run)
    return named


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


def _plural(what: str, number: int) -> str:
    return what if number == 1 else f"{what}s"


def _short(value: object) -> str:
    if value is None or isinstance(value, bool):
        return "none" if value is None else str(value).lower()
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
