"""The images of a split: files in one sub-folder a class, or pixels in memory."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset

from hpcdat.errors import InputError
from hpcdat.storage.atomic_files import digest


class DataError(InputError):
    """Images are missing or unreadable; the message names them."""


@dataclass(frozen=True)
class Images:
    """The images of one split.

    Attributes:
        files: their paths, sorted within each class; names, where the pixels are in memory.
        labels: their classes, positions in ``classes``.
        classes: names of the classes.
        pixels: (N, H, W, C), uint8, or None where the files are to be read.
        unlabelled: how many of them, the last ones, have labels that a model gave them.
    """

    files: list[str]
    labels: list[int]
    classes: list[str]
    pixels: NDArray[np.uint8] | None = None
    unlabelled: int = 0

    def __len__(self) -> int:
        return len(self.files)

    @cached_property
    def signature(self) -> str:
        """A hash of names, labels, and pixels, or sizes and times of files, to distinguish lists of images.

        The time of a file's last change saves reading gigabytes. If it differs although the images do not
        (a copy), results are only measured again.
        """
        names = [f"{Path(file).parent.name}/{Path(file).name}" for file in self.files]
        if self.pixels is None:
            return digest([names, self.labels, [_stamp(Path(file)) for file in self.files]])
        pixels = hashlib.blake2b(np.ascontiguousarray(self.pixels).data, digest_size=8).hexdigest()
        return digest([names, self.labels, self.pixels.shape, pixels])

    def subset(self, indices: NDArray[np.int64]) -> Images:
        """The images at these positions, in this order."""
        return Images(
            [self.files[i] for i in indices],
            [self.labels[i] for i in indices],
            self.classes,
            None if self.pixels is None else self.pixels[indices],
        )

    def equal_part(self, count: int) -> Images:
        """A part of the images with equal numbers of each class (up to one), the same every time.

        Raises:
            DataError: there are not so many.
        """
        if count > len(self):
            raise DataError(f"cannot take {count} images of {len(self)}")
        order = np.random.default_rng(0).permutation(len(self))
        labels = np.array(self.labels)[order]
        turn = np.empty_like(labels)
        for label in np.unique(labels):
            members = labels == label
            turn[members] = np.arange(members.sum())
        return self.subset(np.sort(order[np.lexsort((labels, turn))[:count]]))


def list_images(folder: Path, classes: list[str] | None = None) -> Images:
    """List a folder as torchvision's ImageFolder does.

    Args:
        folder: holds one sub-folder a class.
        classes: the classes that are expected, or None to take those found.

    Raises:
        DataError: no such folder, no class, an empty class, or other classes than expected.
    """
    try:
        found, positions = find_classes(folder)
        if classes is not None and found != classes:
            different = sorted(set(found) ^ set(classes))
            raise DataError(f"{folder}: other classes than in training: {', '.join(different[:5])}")
        samples = make_dataset(str(folder), positions, extensions=IMG_EXTENSIONS)
    except FileNotFoundError as error:
        raise DataError(
            f"{folder}: {error.strerror or error}. Expected {folder.name}/CLASS/*.jpg (or png, ...) "
            "in data.root"
        ) from None
    except OSError as error:
        raise DataError(f"{folder}: {error.strerror or error}") from None
    files, labels = zip(*samples, strict=True)
    return Images(list(files), list(labels), found)


def _stamp(file: Path) -> list[int] | None:
    """Size and time of the last change; None if there is no such file, which may be skipped."""
    try:
        state = file.stat()
    except OSError:
        return None
    return [state.st_size, state.st_mtime_ns]
