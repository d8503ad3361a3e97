"""Images: their files, which worker reads which, and the loaders that read them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from hpcdat.config.sections import Data
from hpcdat.data.cifar import read_cifar
from hpcdat.data.device_loader import DeviceLoader
from hpcdat.data.digits import write_digits
from hpcdat.data.images import DataError, Images, list_images
from hpcdat.data.sampler import Indices


class Loader(Protocol):
    """Reads batches of images, decoded and of one size."""

    def read(self, batches: list[Indices], seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images (N, C, H, W), float32 in [0, 1], and labels (N,), int64, batch by batch.

        With ``corrupt: skip``, unreadable images are missing from their batches.

        Args:
            batches: positions in the list of images, in order; any may be empty.
            seed: of the augmentation, where there is one.
        """
        ...


def find_images(settings: Data) -> tuple[Images, Images]:
    """The training and the test images of a job.

    Digits are written to files first if they are not there yet.

    Raises:
        DataError: a folder is missing or empty, the two hold different classes, or fewer images than
            the job asks for.
    """
    root = settings.root or _cache() / "data" / settings.source
    if settings.source in ("cifar10", "cifar100"):
        train, test = read_cifar(settings.source, root, download=settings.download)
    else:
        if settings.source == "digits":
            write_digits(root)
        train = list_images(root / settings.train)
        test = list_images(root / settings.test, classes=train.classes)
    if settings.train_images:
        train = train.equal_part(settings.train_images)
    if settings.test_images:
        test = test.equal_part(settings.test_images)
    return train, test


def open_loader(
    images: Images, settings: Data, *, training: bool, batch_size: int, device: torch.device
) -> Loader:
    """The loader that the job names.

    Args:
        images: what it reads.
        settings: the job's ``data`` section.
        training: whether the training augmentation applies.
        batch_size: largest batch it will be asked for.
        device: where the images end up.
    """
    if settings.loader == "device":
        return DeviceLoader(images, settings, training=training, device=device)
    # Imported on demand, so that DALI need not be installed if unused.
    if settings.loader == "dali":
        from hpcdat.data.dali_loader import DaliLoader

        return DaliLoader(images, settings, training=training, batch_size=batch_size, device=device)
    from hpcdat.data.torchvision_loader import TorchvisionLoader

    return TorchvisionLoader(images, settings, training=training, device=device)


def _cache() -> Path:
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hpcdat"
    except RuntimeError:
        raise DataError(
            "data.root is not set, and there is no home folder for the cache: set data.root, or the "
            "environment variable HOME or XDG_CACHE_HOME"
        ) from None
