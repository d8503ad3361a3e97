"""Cache keys of evaluations: model, images and settings on which outcomes depend."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hpcdat.config.evaluation_job import EvaluationJob
from hpcdat.data.images import Images
from hpcdat.distributed.communicator import Communicator
from hpcdat.models.fingerprint import fingerprint
from hpcdat.models.networks import code_of_network

TRAINING_ONLY = ("batch_norm", "pretrained", "pretrained_averaged")
"""Settings of the model that only training depends on."""


def cache_key(model: nn.Module, job: EvaluationJob, images: Images, workers: Communicator) -> dict[str, Any]:
    """The part of the key common to all measurements: the model, the images and how they are read.

    All workers call this together.

    Args:
        model: the same on all workers.
        job: resolved.
        images: the test images. Worker 0 reads file sizes and times for all, since another node may see
            different copies of the files.
        workers: all workers.

    Returns:
        A JSON value, the same on all workers.

    Raises:
        WorkerError: worker 0 failed.
    """
    signature = workers.on_rank0("read the images' signature", lambda: images.signature)
    name, folders = job.model.name, job.module_path or ()
    code = workers.on_rank0("read the network's code", lambda: code_of_network(name, folders))
    return {
        **({"code": code} if code else {}),
        "weights": fingerprint(model),
        "model": job.model.model_dump(mode="json", exclude={*TRAINING_ONLY}),
        "images": {"count": len(images), "signature": signature},
        "data": job.data.model_dump(include={"loader", "image_size", "channels", "augmentation"}),
    }


def numerics_key(model: nn.Module) -> dict[str, str]:
    """The part of the key that determines rounding and random numbers: kind of device, version of torch."""
    return {"device": next(model.parameters()).device.type, "torch": torch.__version__}
