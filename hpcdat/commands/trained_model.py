"""The model of an evaluation, that of a run or given weights, and its test images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from hpcdat.config.evaluation_job import EvaluationJob
from hpcdat.config.job import Job
from hpcdat.data import find_images, find_test_images
from hpcdat.data.images import Images
from hpcdat.data.listing import find_together
from hpcdat.distributed.communicator import Communicator
from hpcdat.distributed.device import choose_device
from hpcdat.distributed.environment import describe_environment
from hpcdat.errors import InputError, first_few
from hpcdat.models import build_model_for
from hpcdat.models.fingerprint import fingerprint
from hpcdat.models.normalization import Normalization
from hpcdat.storage.evaluation_folder import begin_evaluation, check_given
from hpcdat.storage.run_folder import RunFolder
from hpcdat.training.pretrained import load_pretrained
from hpcdat.training.replicas import make_equal


@dataclass(frozen=True)
class Trained:
    """A trained model.

    Attributes:
        model: on the device, in evaluation mode.
        epoch, step: number of epochs trained, and of steps in the next one; None and 0 for given weights.
        classes: class names, in the order of the logits.
        device: where this worker computes.
        test_images: for given weights, those of the data, whose classes theirs are.
    """

    model: torch.nn.Module
    epoch: int | None
    step: int
    classes: list[str]
    device: torch.device
    test_images: Images | None = None


def load_model(
    folder: RunFolder, job: EvaluationJob, workers: Communicator, *, averaged: bool = False
) -> Trained:
    """Load the model of an evaluation: a run's if the job is a training job, otherwise the given weights.

    Args:
        folder: of the run.
        job: resolved.
        workers: all of them call this together.
        averaged: load the averaged weights of the run.

    Raises:
        InputError, WorkerError: as :func:`load_trained` and :func:`load_given`.
    """
    if isinstance(job, Job):
        return load_trained(folder, job, workers, averaged=averaged)
    if averaged:
        raise InputError(
            "--averaged: expected the folder of a run; in a job for given weights, "
            "model.pretrained_averaged: true takes the averaged weights of a run",
            everywhere=True,
        )
    return load_given(job, workers)


def load_given(job: EvaluationJob, workers: Communicator) -> Trained:
    """Load the weights of ``model.pretrained``, which worker 0 reads.

    Raises:
        InputError: there are no images, or the weights cannot be read or do not fit the whole model.
    """
    path = job.model.pretrained
    assert path is not None  # the job was opened for an evaluation
    workers.on_rank0("find model.pretrained", lambda: check_given(path))
    folders = job.module_path or ()
    (images,) = find_together(
        lambda quiet: (find_test_images(job.data, folders=folders, quiet=quiet),), job.data, workers
    )
    device = workers.on_all_ranks("choose a device", lambda: choose_device(job, workers))
    model = workers.on_all_ranks("build the model", lambda: build_model_for(job, len(images.classes)))

    def load() -> None:
        loaded = load_pretrained(model, path, images.classes, averaged=job.model.pretrained_averaged)
        if loaded.fresh:
            lacking = first_few([name.removeprefix("1.") for name in loaded.fresh], 3)
            raise InputError(
                f"model.pretrained: {path} does not fit this model: it lacks the last layer ({lacking}), or "
                f"has it for other classes than the {len(images.classes)} of the images "
                f"({first_few(images.classes)}): set data to the images that it was trained for"
            )
        place = f" ({loaded.found_in})" if loaded.found_in else ""
        order = f"; the outputs are taken to be for the classes {first_few(images.classes)}, in this order"
        line = f"weights: {path}: {loaded.taken} tensors{place}{order if loaded.assumed else ''}"
        remarks = [*loaded.remarks, _normalisation(model)]
        print("\n".join([line, *(f"  {remark}" for remark in remarks)]), flush=True)

    workers.on_rank0("read model.pretrained", load)
    # On the CPU, since workers of an evaluation may share a GPU, which NCCL does not allow.
    make_equal(workers, model)
    return Trained(model.to(device).eval(), None, 0, images.classes, device, images)


def _normalisation(model: nn.Module) -> str:
    """What is subtracted from images and what they are divided by, which weights alone do not say."""
    layer = next(module for module in model.modules() if isinstance(module, Normalization))
    means, stds = (
        ", ".join(f"{value:.4g}" for value in buffer.flatten().tolist()) for buffer in (layer.mean, layer.std)
    )
    return f"images are normalised with mean {means} and std {stds} (model.mean, model.std)"


def prepare_folder(folder: RunFolder, job: EvaluationJob, trained: Trained, workers: Communicator) -> None:
    """Prepare the folder of an evaluation of given weights; that of a run is there.

    Raises:
        InputError: the folder is another's, or of other weights.
    """
    if isinstance(job, Job):
        return
    environment = describe_environment(workers, trained.device)
    weights = fingerprint(trained.model)
    workers.on_rank0(
        "make the folder of the evaluation", lambda: begin_evaluation(folder, job, weights, environment)
    )


def load_trained(folder: RunFolder, job: Job, workers: Communicator, *, averaged: bool = False) -> Trained:
    """Load the model of a run's latest checkpoint; with early stopping, of the best one.

    Args:
        folder: of the run.
        job: its job.
        workers: all of them call this together.
        averaged: load the averaged weights.

    Raises:
        InputError: there is no usable checkpoint, it does not fit the job's model, or it has no averaged
            weights.
    """
    checkpoint = workers.on_all_ranks("read the checkpoint", lambda: folder.checkpoint_of_result(job))
    device = workers.on_all_ranks("choose a device", lambda: choose_device(job, workers))

    def build() -> torch.nn.Module:
        state = checkpoint.averaged if averaged else checkpoint.model
        if state is None:
            raise InputError(f"{folder.path}: {_why_none(job)}")
        model = build_model_for(job, len(checkpoint.classes), device)
        try:
            model.load_state_dict(state)
        except RuntimeError:
            raise InputError(
                f"{folder.path}: the settings describe another model than the one that was trained: "
                "do not change method, model and data.channels"
            ) from None
        return model.eval()

    model = workers.on_all_ranks("build the model", build)
    return Trained(model, checkpoint.epoch, checkpoint.step, checkpoint.classes, device)


def images_for(trained: Trained, job: EvaluationJob, workers: Communicator) -> Images:
    """The test images of a model.

    Raises:
        InputError: there are none, or their classes differ from those of the training.
    """
    if trained.test_images is not None:
        return trained.test_images

    def find(*, quiet: bool) -> tuple[Images]:
        train_images, test_images = find_images(job.data, folders=job.module_path or (), quiet=quiet)
        if train_images.classes != trained.classes:
            raise InputError(f"{job.data.root}: the classes differ from those of the training")
        return (test_images,)

    (images,) = find_together(find, job.data, workers)
    return images


def _why_none(job: Job) -> str:
    """Why a checkpoint of this job has no averaged weights."""
    if job.averaging.swa_from is not None:
        return f"no weights have been averaged yet: averaging.swa_from is epoch {job.averaging.swa_from}"
    if job.averaging.ema is not None:
        return "no weights have been averaged yet: training has not begun"
    return "the run averaged no weights: train with averaging.ema or averaging.swa_from"
