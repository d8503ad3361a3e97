"""Checkpoints: the state of a training run, verified, and free of code.

All of it is in one file, except what each worker has of its own, which is in a second one
(:mod:`hpcdat.storage.worker_rows`): in the middle of an epoch its running batch-norm statistics, and the
residuals of its error feedback.
"""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import pydantic
import torch
from torch import Tensor

from hpcdat import __version__
from hpcdat.errors import InputError, first_line, shorten
from hpcdat.storage.atomic_files import write_atomically
from hpcdat.storage.worker_rows import WorkerRows, check_rows

FORMAT = 11
"""Format of the checkpoints that are written."""

READABLE = (8, 9, 10, 11)
"""Formats that are read. Those of 8 have no averaged weights; up to 9 error feedback is in the first file; up
to 10 FLOPs are not counted."""

MAGIC = b'{"hpcdat-checkpoint": '
"""The first bytes of every checkpoint."""

DEVELOPMENT_VERSIONS = {
    1: "20 November 2026",
    2: "20 to 21 November 2026",
    3: "21 November 2026",
    4: "21 November 2026",
    5: "21 to 24 November 2026",
    6: "24 to 28 November 2026",
    7: "28 November 2026",
}
"""Dates of the development versions that wrote each format before a release did."""


class CheckpointError(InputError):
    """A checkpoint is missing or cannot be used; the message says which and why."""


@dataclass(kw_only=True)
class EpochTotals:
    """Sums over the steps of the current epoch.

    Attributes:
        cost: summed cost of the samples.
        images: number of images trained on by all workers.
        correct: how many of them are classified correctly without perturbation, if the cost uses them so.
        skipped_steps: number of steps skipped because a cost or gradient was not finite.
        skipped_images: number of unreadable images.
        total_seconds, waited_seconds, data_seconds: worker 0's time in total, waiting for exchanges, and
            waiting for images.
        communication_seconds: time with exchanges in progress, each counted from when the last worker starts
            it.
        gpu_joules, package_joules, dram_joules: energy of all GPUs, and of the processors and the memory of
            all nodes; None if a part was not measured.
    """

    cost: float = 0.0
    images: int = 0
    correct: int = 0
    skipped_steps: int = 0
    skipped_images: int = 0
    total_seconds: float = 0.0
    communication_seconds: float = 0.0
    waited_seconds: float = 0.0
    data_seconds: float = 0.0
    gpu_joules: float | None = 0.0
    package_joules: float | None = 0.0
    dram_joules: float | None = 0.0


@pydantic.dataclasses.dataclass(
    frozen=True, kw_only=True, config={"arbitrary_types_allowed": True, "strict": True, "extra": "forbid"}
)
class Checkpoint:
    """The state that a run needs to resume bit for bit, and an evaluation needs to start.

    Order of images, augmentation and attacks are functions of the job's seed, epoch and step, so no other
    random state is needed.

    Attributes:
        model: state of the model, batch-norm statistics averaged over the workers.
        optimizer: state of the optimiser.
        epoch: number of epochs done.
        step: number of steps done in the current epoch.
        totals: sums over these steps, as a dictionary of :class:`EpochTotals`.
        skipped_steps: number of steps skipped since the run began.
        flops: floating-point operations of all steps since the run began; None if they are not counted.
        history: evaluations so far, as a dictionary of :class:`~hpcdat.training.early_stopping.History`.
        feedback: shapes of the error feedback of the exchange by bucket and side, which each worker's row
            ends with; in formats 8 and 9 the error feedback of all workers, (M, ...) float32.
        stale: weights with which the pending adversarial examples were made, step by step.
        workers: number of workers (M).
        classes: class names, in the order of the logits.
        images: number of training images.
        metrics_bytes: length of the metrics file when this was written; later lines belong to steps that are
            repeated.
        statistics: where each worker's row is, a dictionary of
            :class:`~hpcdat.storage.worker_rows.WorkerRows`; empty if there are no rows. In the middle of an
            epoch a row begins with the worker's running batch-norm statistics; otherwise all workers have
            those of the model.
        averaged: state of the model with averaged weights, under the names of ``model``; None if the job
            averages none, or has not begun to.
        averaging: what the averages need to continue in addition; empty if ``averaged`` is None.
    """

    model: dict[str, Any]
    optimizer: dict[str, Any]
    epoch: int
    step: int
    workers: int
    classes: list[str]
    images: int
    totals: dict[str, int | float | None] = field(default_factory=lambda: asdict(EpochTotals()))
    skipped_steps: int = 0
    flops: int | None = None
    history: dict[str, int] = field(default_factory=dict)
    feedback: list[dict[str, Any]] = field(default_factory=list)
    stale: list[list[Any]] = field(default_factory=list)
    metrics_bytes: int = 0
    statistics: dict[str, str | int] = field(default_factory=dict)
    averaged: dict[str, Tensor] | None = None
    averaging: dict[str, Any] = field(default_factory=dict)

    def worker_rows(self) -> WorkerRows | None:
        """Where the row of each worker is; None if there are none.

        Raises:
            ValueError: the description of the file is damaged.
        """
        described: dict[str, Any] = {**self.statistics}
        return WorkerRows(**described) if described else None


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint atomically: a header line (format, checksum, hpcdat's version), then the state.

    Raises:
        OSError: it could not be written; the previous file is unchanged.
    """
    buffer = io.BytesIO()
    torch.save(vars(checkpoint), buffer)
    state = buffer.getbuffer()
    checksum = hashlib.sha256(state).hexdigest()
    header = {"hpcdat-checkpoint": FORMAT, "sha256": checksum, "hpcdat": __version__}
    if checkpoint.statistics:
        header["rows"] = checkpoint.statistics["file"]

    def write(file: IO[bytes]) -> None:
        file.write(json.dumps(header).encode() + b"\n")
        file.write(state)

    write_atomically(path, write)


def file_of_rows(path: Path) -> str | None:
    """Name of the second file of a checkpoint, from its header; None if it has none, or is damaged.

    Raises:
        OSError: it is there and cannot be read.
    """
    try:
        with path.open("rb") as file:
            name = json.loads(file.readline(1000))["rows"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return name if isinstance(name, str) and name == Path(name).name else None


def is_checkpoint(path: Path) -> bool:
    """Whether a file starts as a checkpoint of hpcdat does, of any format.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint onto the CPU and verify it, without executing code in the file.

    Raises:
        CheckpointError: it is missing, damaged, or has another format.
    """
    try:
        with path.open("rb") as file:
            header = file.readline(1000)
            state = file.read()
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        fields = json.loads(header)
        version, checksum = fields["hpcdat-checkpoint"], fields["sha256"]
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(f"{path}: not an hpcdat checkpoint") from None
    if version not in READABLE:
        raise CheckpointError(
            f"{path}: written by {_writer(version, fields.get('hpcdat'))} (checkpoint format "
            f"{shorten(version)}); hpcdat {__version__} reads only formats "
            f"{', '.join(map(str, READABLE[:-1]))} and {READABLE[-1]}"
        )
    if hashlib.sha256(state).hexdigest() != checksum:
        raise CheckpointError(f"{path}: damaged: the checksum does not match")
    try:
        return Checkpoint(**torch.load(io.BytesIO(state), map_location="cpu", weights_only=True))
    except Exception as error:
        # A valid checksum does not make the contents trustworthy: anybody can compute one.
        raise CheckpointError(f"{path}: not a readable checkpoint: {first_line(error)}") from None


def _writer(version: object, recorded: object) -> str:
    """The hpcdat that wrote a checkpoint of another format."""
    if isinstance(version, int) and version in DEVELOPMENT_VERSIONS:
        return f"a development version of hpcdat before 0.1.0, of {DEVELOPMENT_VERSIONS[version]}"
    if recorded is not None:
        return f"hpcdat {shorten(recorded)}"
    return "an unknown version of hpcdat"


def load_resumable(path: Path) -> Checkpoint:
    """Read a checkpoint as :func:`load_checkpoint` does, and verify its second file too.

    Raises:
        CheckpointError: there is none, it is damaged, or it is of another format.
    """
    checkpoint = load_checkpoint(path)
    try:
        if rows := checkpoint.worker_rows():
            check_rows(path.parent, rows)
    except (OSError, TypeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else first_line(error)
        raise CheckpointError(f"{path}: damaged: its second file: {reason}") from None
    return checkpoint
