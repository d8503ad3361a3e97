"""Images: their files, which worker reads which, and the loaders that read them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from hpcdat.config.loaders import dali_is_installed
from hpcdat.config.sections import Data
from hpcdat.data.cifar import read_cifar
from hpcdat.data.device_loader import DeviceLoader
from hpcdat.data.digits import write_digits
from hpcdat.data.hugging_face import find_hugging_face
from hpcdat.data.image_folder import Listing, list_folder
from hpcdat.data.images import DataError, Images
from hpcdat.data.own_data import find_own
from hpcdat.data.sampler import Indices
from hpcdat.data.shard_folder import open_shards
from hpcdat.user_cache import user_cache


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

    def close(self) -> None:
        """End threads and processes; the loader is not used any more."""
        ...


def find_images(
    settings: Data, *, folders: Sequence[Path] = (), quiet: bool = False
) -> tuple[Images, Images]:
    """The training and the test images of a job, the same on all workers.

    Digits are written to files first if they are not there yet.

    Args:
        settings: the job's ``data`` section.
        folders: the job's ``module_path``, for data sets of the user's own.
        quiet: do not report what is left out of a folder, images of both training and test, and the like;
            for all workers but one.

    Raises:
        DataError: a folder is missing or empty, the two hold different classes, or fewer images than
            the job asks for.
    """
    if settings.is_user_code:
        train, test = find_own(settings, folders, quiet=quiet)
    elif settings.source == "huggingface":
        train, test = find_hugging_face(settings, quiet=quiet)
    elif settings.source in ("cifar10", "cifar100"):
        train, test = read_cifar(settings.source, _root(settings), download=settings.download)
    elif settings.source == "shards":
        train, test = _find_in_shards(_root(settings), settings, quiet)
    else:
        if settings.source == "digits":
            write_digits(_root(settings))
        train, test = _find_in_folders(_root(settings), settings, quiet)
    if settings.train_images:
        train = train.equal_part(settings.train_images)
    if settings.test_images:
        test = test.equal_part(settings.test_images)
    return train, test


def find_test_images(settings: Data, *, folders: Sequence[Path] = (), quiet: bool = False) -> Images:
    """The test images of a job that trains nothing, the same on all workers.

    Of ``data.source: folder`` and ``shards``, only the folder of the test images has to be there; its classes
    are the classes.

    Args:
        settings, folders, quiet: as for :func:`find_images`.

    Raises:
        DataError: the folder is missing or empty, or has fewer images than the job asks for.
    """
    if not settings.has_folders or settings.test_fraction:
        return find_images(settings, folders=folders, quiet=quiet)[1]
    assert settings.root is not None  # the job is valid
    if settings.source == "shards":
        images = open_shards(settings.root / settings.test, quiet=quiet).images
    else:
        listing = list_folder(settings.root / settings.test)
        if listing.left_out and not quiet:
            _report(f"{settings.root / settings.test}: left out: {listing.left_out}")
        images = listing.images
    return images.equal_part(settings.test_images) if settings.test_images else images


def _find_in_folders(root: Path, settings: Data, quiet: bool) -> tuple[Images, Images]:
    """The images of ``data.source: folder``, or of digits that have been written."""
    folders = (
        [root / settings.train] if settings.test_fraction else [root / settings.train, root / settings.test]
    )
    listings = [list_folder(folders[0])]
    listings += [list_folder(folder, listings[0].images.classes) for folder in folders[1:]]
    if not quiet:
        for folder, listing in zip(folders, listings, strict=True):
            if listing.left_out:
                _report(f"{folder}: left out: {listing.left_out}")
    if settings.test_fraction:
        return listings[0].images.split_off(settings.test_fraction, settings.test_seed)
    if not quiet and (common := _common(*listings)):
        test = len(listings[1].images)
        _report(
            f"{folders[1]}: {common:,} of the {test:,} test images are training images, too ({folders[0]}), "
            "so that TA and RA do not show how the model generalises; data.test_fraction: 0.2 takes a fifth "
            "of the images in data.train for the test instead"
        )
    return listings[0].images, listings[1].images


def _find_in_shards(root: Path, settings: Data, quiet: bool) -> tuple[Images, Images]:
    """The images of ``data.source: shards``."""
    train = open_shards(root / settings.train, quiet=quiet)
    if settings.test_fraction:
        return train.images.split_off(settings.test_fraction, settings.test_seed)
    test = open_shards(root / settings.test, quiet=quiet).with_classes_of(train, root / settings.test)
    return train.images, test.images


def _common(train: Listing, test: Listing) -> int:
    """Number of test images that lie in folders of training images."""
    common = train.folders & test.folders
    if not common:
        return 0
    folders = {file.rpartition("/")[0] for file in test.images.files}
    shared = {folder for folder in folders if os.path.realpath(folder) in common}
    return sum(file.rpartition("/")[0] in shared for file in test.images.files)


def _report(line: str) -> None:
    print(f"hpcdat: {line}", file=sys.stderr, flush=True)


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

    Raises:
        DataError: DALI is not installed.
    """
    if settings.loader == "device":
        return DeviceLoader(images, settings, training=training, device=device)
    # Imported on demand, so that DALI need not be installed if unused.
    if settings.loader == "dali":
        if not dali_is_installed():
            raise DataError(
                "data.loader: dali: DALI is not installed: install nvidia-dali-cuda130 (make setup does), or "
                "set data.loader: torchvision"
            )
        from hpcdat.data.dali_loader import DaliLoader

        return DaliLoader(images, settings, training=training, batch_size=batch_size, device=device)
    from hpcdat.data.torchvision_loader import TorchvisionLoader

    return TorchvisionLoader(images, settings, training=training, device=device)


def _root(settings: Data) -> Path:
    if settings.root is not None:
        return settings.root
    try:
        return user_cache() / "data" / settings.source
    except RuntimeError:
        raise DataError(
            "data.root is not set, and there is no home folder for the cache: set data.root, or the "
            "environment variable HOME or XDG_CACHE_HOME"
        ) from None
