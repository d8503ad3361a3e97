"""What outcomes are of: the network and the images, so that those of others are never taken for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hpcdat.cluster.agreement import fingerprint
from hpcdat.cluster.workers import Workers
from hpcdat.data.images import Images
from hpcdat.job import Job


def identity(model: nn.Module, job: Job, images: Images, workers: Workers) -> dict[str, Any]:
    """Network, images and how they are seen; all workers call this together.

    Args:
        model: equal on all workers.
        job: resolved.
        images: what is measured on. Worker 0 looks at them for all: another node may have files of its own.
        workers: who measure.

    Returns:
        A JSON value, the same on all workers.

    Raises:
        WorkerError: worker 0 failed.
    """
    looked = workers.together("look at the images", lambda: workers.is_first and images.signature)
    return {
        "weights": fingerprint(model),
        "model": job.model.model_dump(mode="json", exclude={"pretrained"}),
        "images": {"count": len(images), "signature": workers.gather(looked, "signature of the images")[0]},
        "data": job.data.model_dump(include={"loader", "image_size", "channels", "augmentation"}),
    }


def rounding(model: nn.Module) -> dict[str, str]:
    """What else decides how sums are rounded and random numbers drawn: a JSON value."""
    return {"device": next(model.parameters()).device.type, "torch": torch.__version__}
