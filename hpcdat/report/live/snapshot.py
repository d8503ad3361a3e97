"""What the files of a run say about it at one moment; no checkpoint is opened."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

from hpcdat.errors import Exit, InputError, shorten
from hpcdat.report.live.log_lines import WARNINGS_SHOWN, end_of_log, warnings_in
from hpcdat.storage.folder_lock import is_locked
from hpcdat.storage.run_folder import RunFolder
from hpcdat.tracking.curves import point_of

RECENT_EPOCHS = 5
"""Epochs whose median is the usual time of one."""

LEFT_OUT = {"skipped_steps": "steps that were not finite", "skipped_images": "unreadable images"}
"""Numbers in the line of an epoch that warn if they are not 0."""

LOG_LINES = 3
"""Lines of a log that are shown."""

State = Literal["starting", "training", "not running", "unknown", "finished"]


@dataclass(frozen=True)
class Snapshot:
    """A run at one moment.

    Attributes:
        folder: of the run.
        method, exchange: of its job.
        workers: their number, nodes and devices, as text; empty if that is not recorded.
        state: ``starting`` until the first epoch is done; ``unknown`` if the file system has no locks, which
            show whether a process trains.
        remark: about the state, what to do included; empty if there is none.
        epoch, epochs: number of epochs done, and of a whole training.
        unchanged_seconds: since the last line of the metrics, or before it since the start.
        epoch_seconds: usual time of an epoch (T); None before the first one is done.
        left_seconds: of training that is left at this pace, without evaluations; None if unknown.
        curves: (epoch, value) over the run, by the names of :data:`~hpcdat.tracking.curves.CURVES`; without
            values that are not finite.
        warnings: the newest last.
        log: the last lines of the log of its Slurm job; empty if there is none.
    """

    folder: str
    method: str
    exchange: str
    workers: str
    state: State
    remark: str
    epoch: int
    epochs: int
    unchanged_seconds: float
    epoch_seconds: float | None
    left_seconds: float | None
    curves: Mapping[str, Sequence[tuple[int, float]]]
    warnings: Sequence[str]
    log: Sequence[str]


def take_snapshot(path: Path, now: float) -> Snapshot:
    """Read the files of a run.

    Args:
        path: its folder.
        now: seconds since the epoch, as ``time.time()`` has them.

    Raises:
        InputError: there is no run, or its files are damaged.
    """
    folder = RunFolder(path)
    job, lines = folder.read_job([]), folder.lines()
    epochs = [line for line in lines if line["event"] == "epoch"]
    if not all({"epoch", "total_seconds"} <= line.keys() for line in epochs):
        raise InputError(f"{folder.metrics_file} cannot be read: an epoch without number or time")
    state = _state(path, lines)
    newest = max(_changed(file) for file in (folder.job_file, folder.environment_file, folder.metrics_file))
    seconds = [line["total_seconds"] for line in epochs[-RECENT_EPOCHS:]]
    usual, done = median(seconds) if seconds else None, epochs[-1]["epoch"] if epochs else 0
    unchanged, left = max(0.0, now - newest), None
    if usual is not None and state == "training":
        # Of the epoch at hand, what has passed; it may take longer than usual.
        left = max(0.0, (job.total_epochs - done) * usual - min(unchanged, usual))
    log = end_of_log(folder.slurm_folder)
    return Snapshot(
        folder=str(path),
        method=job.method,
        exchange=job.exchange.describe(),
        workers=_workers(folder),
        state=state,
        remark=_remark(state, folder),
        epoch=done,
        epochs=job.total_epochs,
        unchanged_seconds=unchanged,
        epoch_seconds=usual,
        left_seconds=left,
        curves=_curves(lines),
        warnings=[*_of_metrics(lines)[-WARNINGS_SHOWN:], *warnings_in(log)],
        log=log[-LOG_LINES:],
    )


def _changed(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _state(path: Path, lines: Sequence[Mapping[str, Any]]) -> State:
    if any(line["event"] == "finished" for line in lines):
        return "finished"
    trains = is_locked(path)
    if trains is None:
        return "unknown"
    if not trains:
        return "not running"
    return "training" if any(line["event"] == "epoch" for line in lines) else "starting"


def _remark(state: State, folder: RunFolder) -> str:
    if state == "finished":
        return f"`hpcdat report {folder.path}` shows the result"
    if state == "unknown":
        return "the file system has no locks, which would show whether a process trains"
    if state != "not running":
        return ""
    resume = f"`hpcdat train {folder.job_file}` resumes it"
    code = _last_code(folder.slurm_folder / "ends.jsonl")
    if code is None:
        elsewhere = "where nodes do not share locks, it may train on another node"
        return f"stopped, killed or failed; {resume}; {elsewhere}"
    if code == Exit.STOPPED_RESUMABLE:
        return f"its Slurm job stopped early, with a checkpoint; if Slurm does not requeue it, {resume}"
    return f"its Slurm job failed with exit code {code}: see the log in {folder.slurm_folder}; {resume}"


def _last_code(file: Path) -> int | None:
    """The exit code at the latest end of the run's Slurm job; None if there is none."""
    try:
        return int(json.loads(file.read_text().splitlines()[-1])["code"])
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _curves(lines: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    curves: dict[str, list[tuple[int, float]]] = {}
    for line in lines:
        if point := point_of(line):
            for name, value in point.values.items():
                if math.isfinite(value):
                    curves.setdefault(name, []).append((point.epoch, value))
    return curves


def _of_metrics(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the metrics have to warn of."""
    warnings = []
    for line in lines:
        if line["event"] == "overfitting":
            fell = f"from {100 * line['best_ra']:.1f} to {100 * line['ra']:.1f} %"
            warnings.append(
                f"epoch {line['epoch']}: catastrophic overfitting: RA on training images fell {fell}"
            )
        for key, what in LEFT_OUT.items():
            if count := line.get(key):
                warnings.append(f"epoch {line['epoch']}: left out, {what}: {count:,}")
    return warnings


def _workers(folder: RunFolder) -> str:
    try:
        environment = folder.environment()
        workers = environment["workers"]
        devices = ", ".join(dict.fromkeys(worker["device"] for worker in workers))
        return shorten(f"{len(workers)} (nodes: {environment['nodes']}; {devices})")
    except (InputError, LookupError, TypeError):
        return ""
