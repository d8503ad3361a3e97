"""CIFAR-10 and CIFAR-100 from their official batches, read by torchvision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from filelock import FileLock
from torchvision.datasets import CIFAR10, CIFAR100

from hpcdat.data.images import DataError, Images

DATASETS = {"cifar10": CIFAR10, "cifar100": CIFAR100}
"""torchvision's classes by ``data.source``."""

SECONDS_TO_FETCH = 3600
"""How long a worker waits for another one that fetches the same files."""


def read_cifar(source: str, root: Path, *, download: bool) -> tuple[Images, Images]:
    """The training and the test images, with their pixels in memory (about 180 MB).

    The batches are Python pickles; torchvision compares their checksums with the official ones
    before it opens them, so that nothing else is ever unpickled.

    Args:
        source: ``cifar10`` or ``cifar100``.
        root: holds ``cifar-10-batches-py`` or ``cifar-100-python``.
        download: whether to fetch them where they are not there.

    Raises:
        DataError: they are not there, not the official ones, or cannot be fetched.
    """
    dataset = DATASETS[source]
    folder = root / dataset.base_folder
    try:
        if download:
            root.mkdir(parents=True, exist_ok=True)
            with FileLock(root / ".download.lock", timeout=SECONDS_TO_FETCH):
                dataset(root, train=True, download=True)
        splits = [dataset(root, train=train, download=False) for train in (True, False)]
    except RuntimeError:
        raise DataError(
            f"{folder}: the official batches are not there, or their checksums are not right; unpack "
            f"{dataset.filename} in data.root, or set data.download: true"
        ) from None
    except OSError as error:
        raise DataError(f"{folder}: {dataset.url} cannot be fetched or unpacked: {error}") from None
    train, test = (
        Images(
            [f"{folder}: {name} image {i}" for i in range(len(split.targets))],
            split.targets,
            split.classes,
            np.ascontiguousarray(split.data),
        )
        for name, split in zip(("training", "test"), splits, strict=True)
    )
    return train, test
