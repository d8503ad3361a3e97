"""The models by name; their first layer normalises the pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from hpcdat.config.evaluation_job import EvaluationJob
from hpcdat.config.job import Job
from hpcdat.config.methods import METHODS
from hpcdat.models.digits_cnn import DigitsCNN
from hpcdat.models.normalization import Normalization
from hpcdat.models.pixel_model import PixelModel, Precision
from hpcdat.models.preact_resnet import preact_resnet18, wide_resnet28_10
from hpcdat.models.split_batch_norm import split_batch_norm
from hpcdat.seeds import derive


def _resnet50(channels: int, num_classes: int) -> nn.Module:
    from torchvision.models import resnet50

    model: nn.Module = resnet50(weights=None, num_classes=num_classes)
    if channels != 3:
        model.conv1 = nn.Conv2d(channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
    return model


MODELS: dict[str, Callable[..., nn.Module]] = {
    "digits-cnn": DigitsCNN,
    "preact-resnet18": preact_resnet18,
    "wide-resnet28-10": wide_resnet28_10,
    "resnet50": _resnet50,
}
"""Constructors by the values of ``model.name``; each takes channels and number of classes."""


def build_model(
    name: str,
    *,
    channels: int,
    num_classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    seed: int,
    width: float = 1.0,
    precision: Precision = "float32",
    channels_last: bool = False,
) -> nn.Module:
    """A freshly initialised model of pixels.

    Args:
        name: a key of :data:`MODELS`.
        channels: 1 or 3.
        num_classes: number of logits.
        mean, std: statistics of the normalisation layer, one per channel, [0, 1] units.
        seed: of the initial weights; torch's global random state is preserved.
        width: factor of the channels, for models that have one.
        precision, channels_last: see :class:`~hpcdat.models.pixel_model.PixelModel`.

    Returns:
        A module from images (N, channels, H, W), float in [0, 1], to logits (N, num_classes).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MODELS[name](channels, num_classes, **({} if width == 1 else {"width": width}))
    return PixelModel(Normalization(mean, std), model, precision, channels_last)


def build_model_for(job: EvaluationJob, classes: int) -> nn.Module:
    """The model of a job, freshly initialised, with split batch norm if its method uses it.

    Args:
        job: its model, data and seed.
        classes: number of logits.
    """
    model = build_model(
        job.model.name,
        channels=job.data.channels,
        num_classes=classes,
        mean=job.model.mean,
        std=job.model.std,
        seed=derive(job.seed, "weights"),
        precision=job.model.precision,
        width=job.model.width,
        channels_last=job.model.channels_last,
    )
    if isinstance(job, Job) and METHODS[job.method].split:
        split_batch_norm(model)
    return model
