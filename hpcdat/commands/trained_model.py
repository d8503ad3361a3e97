"""The trained model of a run, and its test images."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hpcdat.config.job import Job
from hpcdat.data import find_images
from hpcdat.data.images import Images
from hpcdat.distributed.communicator import Communicator
from hpcdat.distributed.device import choose_device
from hpcdat.errors import InputError
from hpcdat.models import build_model_for
from hpcdat.storage.run_folder import RunFolder


@dataclass(frozen=True)
class Trained:
    """A trained model.

    Attributes:
        model: on the device, in evaluation mode.
        epoch: number of epochs trained.
        classes: class names, in the order of the logits.
        device: where this worker computes.
    """

    model: torch.nn.Module
    epoch: int
    classes: list[str]
    device: torch.device


def load_trained(folder: RunFolder, job: Job, workers: Communicator) -> Trained:
    """Load the model of a run's latest checkpoint; with early stopping, of the best one.

    Raises:
        InputError: there is no usable checkpoint, or it does not fit the job's model.
    """
    checkpoint = workers.on_all_ranks("read the checkpoint", lambda: folder.checkpoint_of_result(job))
    device = workers.on_all_ranks("choose a device", lambda: choose_device(job, workers))

    def build() -> torch.nn.Module:
        model = build_model_for(job, len(checkpoint.classes))
        try:
            model.load_state_dict(checkpoint.model)
        except RuntimeError:
            raise InputError(
                f"{folder.path}: the settings describe another model than the one that was trained: "
                "do not change method, model and data.channels"
            ) from None
        return model.to(device).eval()

    model = workers.on_all_ranks("build the model", build)
    return Trained(model, checkpoint.epoch, checkpoint.classes, device)


def find_test_images(job: Job, trained: Trained, workers: Communicator) -> Images:
    """Find the test images of a trained model.

    Raises:
        InputError: there are none, or their classes differ from those of the training.
    """

    def find() -> Images:
        train_images, test_images = find_images(
            job.data, folders=job.module_path or (), quiet=not workers.is_rank0
        )
        if train_images.classes != trained.classes:
            raise InputError(f"{job.data.root}: the classes differ from those of the training")
        return test_images

    return workers.on_all_ranks("find the images", find)
