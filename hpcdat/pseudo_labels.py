"""Labels for images that have none, by a trained model: the first half of Carmon et al.'s self-training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from hpcdat.cluster.apart import apart
from hpcdat.cluster.stopping import StopRequest
from hpcdat.cluster.workers import Workers
from hpcdat.data import open_loader
from hpcdat.data.batches import evaluation_batches
from hpcdat.data.unlabelled import find_unlabelled, write_pseudo_labelled
from hpcdat.errors import InputError
from hpcdat.files import check_place
from hpcdat.progress import Progress
from hpcdat.record import RunFolder
from hpcdat.run import load_trained


def pseudo_label(
    run_dir: Path, source: Path, out: Path, settings: list[str], workers: Workers, stop: StopRequest
) -> dict[str, int]:
    """Label images with a run's model, and keep both.

    Args:
        run_dir: of the run whose latest (with early stopping: best) weights label.
        source: a folder of images, or a .npy file of (N, H, W, C) uint8.
        out: the .npz to write.
        settings: ``key=value`` texts for the run's job.
        workers: who label; each its share.
        stop: the user's wish to stop.

    Returns:
        Images by class, of the classes in the order of the logits.

    Raises:
        InputError: run or images cannot be used, or the file cannot be written where it is to be.
        WorkerError: something failed on a worker.
        Stopped: a stop was asked for; nothing is written.
    """
    folder = RunFolder(run_dir)
    job = workers.together("read the job", lambda: folder.read_job(settings))

    def check() -> None:
        if not workers.is_first:
            return
        try:
            check_place(out)
        except OSError as error:
            raise InputError(
                f"{out}: cannot be written ({error.strerror}): name a file in a folder that is there and "
                "can be written to"
            ) from None

    workers.together("look where to write", check)
    trained = load_trained(folder, job, workers)
    images = workers.together(
        "find the images", lambda: find_unlabelled(source, trained.classes, job.data.channels)
    )
    size = job.evaluation.batch_size
    # Every image needs its label: one that cannot be read ends the work.
    data = job.data.model_copy(update={"corrupt": "stop"})
    loader = open_loader(images, data, training=False, batch_size=size, device=trained.device)
    batches = evaluation_batches(len(images), size, rank=workers.rank, size=workers.size)
    progress = Progress(shown=workers.is_first)
    labels = torch.zeros(len(images), dtype=torch.int64)

    def work(look: Callable[[], None]) -> None:
        progress.begin("labels", len(batches))
        try:
            read = loader.read([indices for _, indices in batches], seed=0)
            for (_, indices), (x, _) in zip(batches, read, strict=True):
                with torch.no_grad():
                    labels[torch.from_numpy(indices)] = trained.model(x).argmax(1).cpu()
                progress.step()
                look()
        finally:
            progress.end()

    apart(workers, "label all images", work, stop)
    workers.sum([labels], "labels")

    def write() -> None:
        if workers.is_first:
            write_pseudo_labelled(out, images, labels.numpy())

    workers.together("write the labels", write)
    counts = np.bincount(labels.numpy(), minlength=len(trained.classes)).tolist()
    return dict(zip(trained.classes, counts, strict=True))
