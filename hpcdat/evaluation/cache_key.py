"""Cache keys of evaluations: network, images and settings on which outcomes depend."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hpcdat.config.job import Job
from hpcdat.data.images import Images
from hpcdat.distributed.communicator import Communicator
from hpcdat.models.fingerprint import fingerprint


def cache_key(model: nn.Module, job: Job, images: Images, workers: Communicator) -> dict[str, Any]:
    """What every result depends on: the network, the images and how they are read.

    All workers call this together.

    Args:
        model: the same on all workers.
        job: resolved.
        images: the test images. Worker 0 reads their sizes and times for all: another node may see other
            copies of the files.
        workers: all of them.

    Returns:
        A JSON value, the same on all workers.

    Raises:
        WorkerError: worker 0 failed.
    """
    signature = workers.on_rank0("read the images' signature", lambda: images.signature)
    return {
        "weights": fingerprint(model),
        "model": job.model.model_dump(mode="json", exclude={"pretrained"}),
        "images": {"count": len(images), "signature": signature},
        "data": job.data.model_dump(include={"loader", "image_size", "channels", "augmentation"}),
    }


def numerics_key(model: nn.Module) -> dict[str, str]:
    """What decides how sums are rounded and random numbers drawn: kind of device and torch's version."""
    return {"device": next(model.parameters()).device.type, "torch": torch.__version__}
