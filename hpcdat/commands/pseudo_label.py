"""Label unlabelled images with a trained model: the first half of self-training (Carmon et al. 2019)."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import Self

from hpcdat.commands.trained_model import load_model
from hpcdat.data.pseudo_labelled import find_unlabelled, write_pseudo_labelled
from hpcdat.distributed.communicator import Communicator
from hpcdat.distributed.stop_signals import StopRequest
from hpcdat.errors import InputError
from hpcdat.evaluation.determinism import deterministic
from hpcdat.evaluation.image_batches import ImageBatches
from hpcdat.evaluation.sharded_runner import Execution, Measurement, run_sharded
from hpcdat.progress import Progress
from hpcdat.storage.atomic_files import check_writable
from hpcdat.storage.evaluation_folder import open_for_evaluation


@dataclass(frozen=True)
class Labels:
    """The labels of one batch, as class indices."""

    labels: Sequence[int]

    def to_json(self) -> list[int]:
        """As a JSON value."""
        return list(self.labels)

    @classmethod
    def from_json(cls, value: list[int]) -> Self:
        """The inverse of :meth:`to_json`."""
        return cls(value)


class Labelling(Measurement[Labels]):
    """The most likely class of each image."""

    name = "labels"
    task = "label all images"
    outcome = Labels
    folds = False

    def __init__(self) -> None:
        self.settings: dict[str, Any] = {}

    @torch.no_grad()
    def measure(  # noqa: D102
        self, model: nn.Module, x: Tensor, y: Tensor, number: int, *, folded: nn.Module | None = None
    ) -> Labels:
        return Labels(model(x).argmax(1).tolist())


def pseudo_label(
    model: Path, source: Path, out: Path, settings: list[str], workers: Communicator, stop: StopRequest
) -> dict[str, int]:
    """Label images with a run's model or with given weights, and write images and labels to a file.

    Args:
        model: a run's folder, of which the latest weights are used, with early stopping its best ones; or a
            job file whose model has weights.
        source: a folder of images, or a .npy file of (N, H, W, C) uint8.
        out: the .npz file to write.
        settings: ``key=value`` texts for the job.
        workers: each labels a share of the images.
        stop: request to stop.

    Returns:
        Number of images by class, in the order of the logits.

    Raises:
        InputError: the run or the images cannot be used, or the output file cannot be written or holds
            something else.
        WorkerError: something failed on a worker.
        Stopped: a stop was requested; nothing is written.
    """
    folder, job = workers.on_all_ranks("read the job", lambda: open_for_evaluation(model, settings))

    def check() -> None:
        if out.is_file() and not _is_pseudo_labelled(out):
            raise InputError(f"{out}: exists and holds no pseudo-labels: choose another name, or remove it")
        try:
            check_writable(out)
        except OSError as error:
            raise InputError(
                f"{out}: cannot be written ({error.strerror}): choose a file in an existing, writable folder"
            ) from None

    workers.on_rank0("check the output file", check)
    trained = load_model(folder, job, workers)
    images = workers.on_all_ranks(
        "find the images",
        lambda: find_unlabelled(source, trained.classes, job.data.channels, quiet=not workers.is_rank0),
    )
    # Every image needs a label: one that cannot be read ends the command.
    job = job.model_copy(update={"data": job.data.model_copy(update={"corrupt": "stop"})})
    batches = ImageBatches(images, job.data, job.evaluation.batch_size, trained.device)
    execution = Execution(workers, Progress(shown=workers.is_rank0), stop)
    with deterministic(trained.device, execution.progress.say):
        outcomes = run_sharded(Labelling(), batches, trained.model, job, execution)
    labels = np.array([label for one in outcomes.values() for label in one.labels], dtype=np.int64)
    workers.on_rank0("write the labels", lambda: write_pseudo_labelled(out, images, labels))
    counts = np.bincount(labels, minlength=len(trained.classes)).tolist()
    return dict(zip(trained.classes, counts, strict=True))


def _is_pseudo_labelled(file: Path) -> bool:
    """Whether a file is one of this command, which it may replace."""
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return {"labels.npy", "classes.npy"} <= set(archive.namelist())
