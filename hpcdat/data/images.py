"""The images of a split: files in one sub-folder a class, or pixels in memory."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hpcdat.errors import InputError
from hpcdat.seeds import derive
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

    def split_off(self, fraction: float, seed: int) -> tuple[Images, Images]:
        """The images without a part of each class, and that part; by the names of the files.

        A file that is added or removed moves at most one other per class from one part to the other.

        Args:
            fraction: of the images of each class, to the nearest image, at least one.
            seed: another one chooses other images.

        Raises:
            DataError: a class has a single image.
        """
        names = ["/".join(Path(file).parts[-2:]) for file in self.files]
        # Names may hold bytes that are no text.
        order = sorted(range(len(self)), key=lambda index: (derive(seed, f"test {names[index]!a}"), index))
        labels = np.array(self.labels)
        sizes = np.bincount(labels)
        if sizes.min() == 1:
            single = self.classes[int(sizes.argmin())]
            raise DataError(f"data.test_fraction: class {single} has one image, which cannot be divided")
        left = np.clip(np.rint(fraction * sizes).astype(np.int64), 1, sizes - 1)
        taken = np.zeros(len(self), dtype=bool)
        for index in order:
            label = labels[index]
            taken[index] = left[label] > 0
            left[label] -= 1
        return self.subset(np.flatnonzero(~taken)), self.subset(np.flatnonzero(taken))

    def equal_part(self, count: int) -> Images:
        """A part of the images with equal numbers of each class (up to one), the same every time.

        Raises:
            DataError: there are not so many.
        """
        return self.subset(self.balanced(count))

    def balanced(self, count: int) -> NDArray[np.int64]:
        """Positions of the images of :meth:`equal_part`, in order."""
        if count > len(self):
            raise DataError(f"cannot take {count} images of {len(self)}")
        order = np.random.default_rng(0).permutation(len(self))
        labels = np.array(self.labels)[order]
        turn = np.empty_like(labels)
        for label in np.unique(labels):
            members = labels == label
            turn[members] = np.arange(members.sum())
        return np.sort(order[np.lexsort((labels, turn))[:count]])


def _stamp(file: Path) -> list[int] | None:
    """Size and time of the last change; None if there is no such file, which may be skipped."""
    try:
        state = file.stat()
    except OSError:
        return None
    return [state.st_size, state.st_mtime_ns]
