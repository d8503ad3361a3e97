"""Finished runs, as reports read them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hpcdat.config.job import Job
from hpcdat.config.sections import by_name
from hpcdat.evaluation.certification.certificates import Certified
from hpcdat.report.certificates import read_certificates
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
        return trained | {"RA": f"{self.result.conditions} on {self.result.images} test images"}

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
    if not _has_hardware(environment):
        raise RunError(f"{files.environment_file} does not say what the run ran on")
    if not epochs or not all({"images", "total_seconds"} <= epoch.keys() for epoch in epochs):
        raise RunError(f"{files.metrics_file} does not have the run's epochs")
    return Run(folder, files.read_job([]), result, environment, epochs)


def images_per_epoch(run: Run) -> int:
    """Images that the run trains on in a full epoch."""
    images: int = max(epoch["images"] for epoch in run.epochs)
    return images


def evaluations_on_test_images(folder: RunFolder) -> dict[int, Mapping[str, Any]]:
    """What was measured on the test images during the training, by epoch: ``ta`` and ``ra`` in [0, 1].

    Raises:
        RunError: the run's metrics are damaged.
    """
    evaluations = folder.metrics("evaluation")
    # The last evaluation of an epoch counts: that of a run that was resumed, too.
    return {one["epoch"]: one for one in evaluations if not one["held_out"]}


def by_job(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs by the short name of their folder; the seeds of one job together, by that of the folder above."""
    jobs: dict[Path, list[Run]] = {}
    for run in runs:
        folder = run.folder.resolve()
        jobs.setdefault(folder.parent if folder.name.startswith("seed-") else folder, []).append(run)
    names = short_names(list(jobs))
    return {names[folder]: seeds for folder, seeds in jobs.items()}


def folder_names(runs: Sequence[Run]) -> dict[Path, str]:
    """Short names of runs: their folders without the common prefix."""
    return short_names([run.folder for run in runs])


def hardware_notes(runs: Sequence[Run]) -> list[str]:
    """The hardware of the runs, each kind once."""
    called = folder_names(runs)
    kinds: dict[str, list[str]] = {}
    for run in runs:
        kinds.setdefault(run.hardware, []).append(called[run.folder])
    alike = len(kinds) == 1
    return [
        f"Ours{'' if alike else ' (' + ', '.join(names) + ')'}: {hardware}."
        for hardware, names in kinds.items()
    ]


def short_names(paths: Sequence[Path]) -> dict[Path, str]:
    """Names of files or folders: their paths without the common prefix."""
    if not paths:
        return {}
    resolved = {path: path.resolve() for path in paths}
    above = os.path.commonpath([path.parent for path in resolved.values()])
    return {given: str(path.relative_to(above)) for given, path in resolved.items()}


def varied(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """The settings in which runs differ, with their values."""
    values: dict[str, list[Any]] = {}
    for run in runs:
        for key, value in run.recipe.items():
            if value not in values.setdefault(key, []):
                values[key].append(value)
    return {key: different for key, different in values.items() if len(different) > 1}


def _has_hardware(environment: Any) -> bool:
    if not isinstance(environment, dict) or not isinstance(environment.get("nodes"), int):
        return False
    workers = environment.get("workers")
    return isinstance(workers, list) and all(
        isinstance(worker, dict) and {"device", "cpus"} <= worker.keys() for worker in workers
    )


def _plural(what: str, number: int) -> str:
    return what if number == 1 else f"{what}s"
