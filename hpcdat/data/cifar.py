"""CIFAR-10 and CIFAR-100 from their official batches, read by torchvision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torchvision.datasets import CIFAR10, CIFAR100

from hpcdat.data.images import DataError, Images
from hpcdat.distributed.stop_signals import installed_stop_request
from hpcdat.distributed.waiting import Wait, wait_in_thread
from hpcdat.storage.turn_lock import taking_turns

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
            _fetch(dataset, root)
        splits = [dataset(root, train=train, download=False) for train in (True, False)]
    except RuntimeError:
        raise DataError(
            f"{folder}: the official batches are not there, or their checksums are not right; unpack "
            f"{dataset.filename} in data.root, or set data.download: true"
        ) from None
    except OSError as error:
        raise DataError(
            f"{folder}: {dataset.url} cannot be fetched or unpacked: {error}. Unpack {dataset.filename} in "
            "data.root yourself, or set data.root to a folder that can be written"
        ) from None
    train, test = (
        Images(
            [f"{folder}: {name} image {i}" for i in range(len(split.targets))],
            np.array(split.targets),
            split.classes,
            np.ascontiguousarray(split.data),
        )
        for name, split in zip(("training", "test"), splits, strict=True)
    )
    return train, test


def _fetch(dataset: type[CIFAR10], root: Path) -> None:
    """Download and unpack a data set, unless another worker has done so meanwhile."""
    what = f"{dataset.url} to be fetched to {root}, by this worker or another"
    wait = Wait(what, installed_stop_request(), longest=SECONDS_TO_FETCH)
    with taking_turns(root / ".download.lock", wait.check):
        wait_in_thread(lambda: dataset(root, train=True, download=True), wait)
