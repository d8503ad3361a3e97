"""The state of a training run: written atomically, verified, and never code.

All of it is in one file, except the running batch-norm statistics of each worker in the middle of an epoch,
which are in a second one (:mod:`hpcdat.storage.worker_rows`).
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

from hpcdat.errors import InputError
from hpcdat.storage.atomic_files import write_atomically
from hpcdat.storage.worker_rows import WorkerRows, check_rows

FORMAT = 8


class CheckpointError(InputError):
    """A checkpoint that is not there or cannot be used; the message says which and why."""


@dataclass
class EpochTotals:
    """Sums over the steps of the epoch at hand.

    Attributes:
        cost: of the samples, summed.
        images: trained on by all workers.
        correct: of these, those classified right as they are, where the cost looks at them.
        skipped_steps: left out because a cost or gradient was not finite.
        skipped_images: that could not be read.
        total_seconds, waited_seconds, data_seconds: spent in all, waiting for exchanges, and waiting for
            images, by worker 0.
        communication_seconds: with exchanges under way, each from when the last worker came to it.
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


@pydantic.dataclasses.dataclass(
    frozen=True, config={"arbitrary_types_allowed": True, "strict": True, "extra": "forbid"}
)
class Checkpoint:
    """What a run needs to go on bit for bit, and an evaluation needs to start.

    Order of images, augmentation and attacks are functions of the job's seed, epoch and step, so
    the random states are these numbers.

    Attributes:
        model: state of the network, batch-norm statistics averaged over the workers.
        optimizer: state of the optimiser.
        epoch: epochs done.
        step: steps done in the epoch after those.
        totals: of those steps, as a dictionary of :class:`EpochTotals`.
        skipped_steps: steps skipped since the run began.
        history: of the evaluations, a dictionary of :class:`~hpcdat.training.early_stopping.History`.
        feedback: error feedback of the exchange by bucket and place, (M, n) float32.
        stale: weights that the adversarial examples in flight were made with, step by step.
        workers: number of workers M that trained.
        classes: names of the classes, in the order of the logits.
        images: number of images that are trained on.
        metrics_bytes: length of the metrics file when this was written; what follows was
            written by steps that are repeated.
        statistics: in the middle of an epoch, where each worker's running batch-norm statistics are: a
            dictionary of :class:`~hpcdat.storage.worker_rows.WorkerRows`; else empty, since all have those of
            the model.
    """

    model: dict[str, Any]
    optimizer: dict[str, Any]
    epoch: int
    step: int
    workers: int
    classes: list[str]
    images: int
    totals: dict[str, int | float] = field(default_factory=lambda: asdict(EpochTotals()))
    skipped_steps: int = 0
    history: dict[str, int] = field(default_factory=dict)
    feedback: list[dict[str, Any]] = field(default_factory=list)
    stale: list[list[Any]] = field(default_factory=list)
    metrics_bytes: int = 0
    statistics: dict[str, str | int] = field(default_factory=dict)

    def worker_rows(self) -> WorkerRows | None:
        """Where the statistics of each worker are; None if all have those of the model.

        Raises:
            ValueError: the description of the file is damaged.
        """
        described: dict[str, Any] = {**self.statistics}
        return WorkerRows(**described) if described else None


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint, atomically: a line with its checksum, then the state.

    Raises:
        OSError: it could not be written; the one before is untouched.
    """
    buffer = io.BytesIO()
    torch.save(vars(checkpoint), buffer)
    state = buffer.getbuffer()
    header = {"hpcdat-checkpoint": FORMAT, "sha256": hashlib.sha256(state).hexdigest()}

    def write(file: IO[bytes]) -> None:
        file.write(json.dumps(header).encode() + b"\n")
        file.write(state)

    write_atomically(path, write)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint onto the CPU and verify it; no code in the file is run.

    Raises:
        CheckpointError: there is none, it is damaged, or it is of another format.
    """
    try:
        with path.open("rb") as file:
            header = file.readline(1000)
            state = file.read()
    except FileNotFoundError:
        raise CheckpointError(f"{path}: there is no such checkpoint") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        told = json.loads(header)
        version, checksum = told["hpcdat-checkpoint"], told["sha256"]
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(f"{path}: not a checkpoint of hpcdat") from None
    if version != FORMAT:
        raise CheckpointError(f"{path}: a checkpoint of format {version}, expected {FORMAT}")
    if hashlib.sha256(state).hexdigest() != checksum:
        raise CheckpointError(f"{path}: damaged: its contents do not have the checksum it was written with")
    try:
        return Checkpoint(**torch.load(io.BytesIO(state), map_location="cpu", weights_only=True))
    except Exception as error:
        # A checksum can be forged; the contents are not trusted for it.
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(f"{path}: not a readable checkpoint: {reason}") from None


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
        reason = error.strerror if isinstance(error, OSError) else next(iter(str(error).splitlines()), "")
        raise CheckpointError(f"{path}: damaged: its batch-norm statistics: {reason}") from None
    return checkpoint
