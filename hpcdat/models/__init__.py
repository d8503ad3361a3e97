"""The models by name; their first layer normalises the pixels."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hpcdat.config.evaluation_job import EvaluationJob
from hpcdat.config.job import Job
from hpcdat.config.methods import METHODS
from hpcdat.errors import InputError
from hpcdat.models.digits_cnn import DigitsCNN
from hpcdat.models.network_check import check_network
from hpcdat.models.networks import build_network, find_network
from hpcdat.models.normalization import Normalization
from hpcdat.models.pixel_model import PixelModel, Precision
from hpcdat.models.preact_resnet import preact_resnet18, wide_resnet28_10
from hpcdat.models.random_numbers import seeded
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
"""The package's own networks by the values of ``model.name``: constructors of channels and classes."""
_BUILDING = threading.RLock()
"""Threads share the global generators, and would draw each other's numbers. A network of the user's own may
build another one."""


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
    options: dict[str, Any] | None = None,
    folders: Sequence[Path] = (),
) -> nn.Module:
    """A freshly initialised model of pixels.

    Args:
        name: a key of :data:`MODELS`, ``torchvision:NAME``, ``timm:NAME`` or ``MODULE:CALLABLE``.
        channels: 1 or 3.
        num_classes: number of logits.
        mean, std: statistics of the normalisation layer, one per channel, [0, 1] units.
        seed: of the initial weights, also of those that are drawn by Python's or NumPy's generator; the
            states of all global generators are preserved.
        width: factor of the channels, for models that have one.
        precision, channels_last: see :class:`~hpcdat.models.pixel_model.PixelModel`.
        options: further arguments of the network, for names with a colon.
        folders: of modules of the user's own; see :func:`~hpcdat.models.networks.find_network`.

    Returns:
        A module from images (N, channels, H, W), float in [0, 1], to logits (N, num_classes).

    Raises:
        InputError: there is no network of this name, or it cannot be built.
    """
    # A module may draw numbers when it is imported, which happens once in a process; so the seed is fixed.
    with _BUILDING, seeded(0, _device_of_draws()):
        build = find_network(name, folders) if ":" in name else None
    with _BUILDING, seeded(seed, _device_of_draws()):
        if build is not None:
            network = build_network(name, build, channels, num_classes, options or {})
        else:
            network = MODELS[name](channels, num_classes, **({} if width == 1 else {"width": width}))
    return PixelModel(Normalization(mean, std), network, precision, channels_last)


def build_model_for(job: EvaluationJob, classes: int, device: torch.device | None = None) -> nn.Module:
    """The model of a job, freshly initialised, with split batch norm if its method uses it.

    A network that is not one of :data:`MODELS` is checked by a pass of two images; see
    :func:`~hpcdat.models.network_check.check_network`. Any network is checked so at each smaller size of
    training images. On torch's meta device it is not.

    Args:
        job: its model, data and seed.
        classes: number of logits.
        device: of the model; by default where the network has been built, usually the CPU.

    Raises:
        InputError: there is no such network, it cannot be built, does not fit the data, or has no batch norm
            to split.
    """
    name, seed = job.model.name, derive(job.seed, "weights")
    model = build_model(
        name,
        channels=job.data.channels,
        num_classes=classes,
        mean=job.model.mean,
        std=job.model.std,
        seed=seed,
        precision=job.model.precision,
        width=job.model.width,
        channels_last=job.model.channels_last,
        options=job.model.options,
        folders=job.module_path or (),
    )
    if isinstance(job, Job) and METHODS[job.method].split and not split_batch_norm(model):
        raise InputError(
            f"method {job.method} trains with two batch norms, one for adversarial images, and {name} has "
            "none to split: choose a network with batch norm, or another method such as dat-fgsm"
        )
    if device is not None:
        model = model.to(device)
    place = next(model.parameters()).device
    checked = {job.data.image_size: "data.image_size"} if ":" in name else {}
    checked |= dict.fromkeys(job.data.training_sizes[:-1], "data.progressive_resizing")
    for size, setting in checked.items() if place.type != "meta" else ():
        with seeded(seed, place):
            check_network(name, model, (job.data.channels, size, size), classes, setting)
    return model


def check_model_name(job: Job) -> None:
    """Import what ``model.name`` refers to, so that a name that does not exist is reported at once.

    Raises:
        InputError: there is no such network, or it cannot be imported.
    """
    if ":" in job.model.name:
        find_network(job.model.name, job.module_path or ())


def _device_of_draws() -> torch.device:
    """The device whose generator is seeded while a network is built, in addition to the CPU's."""
    return torch.device("cuda" if torch.cuda.is_initialized() else "cpu")
