"""The images of a split: files in one sub-folder a class, pixels in memory, or items of a data set."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hpcdat.data.image_file import Contents, decode, read_file
from hpcdat.errors import InputError
from hpcdat.seeds import derive
from hpcdat.storage.atomic_files import digest


class DataError(InputError):
    """Images are missing or unreadable; the message names them."""


class DataSet(Protocol):
    """A data set whose items are read one by one; it can be pickled, and is then opened again."""

    def read(self, position: int, label: int, channels: int, seed: int) -> Contents | NDArray[np.uint8]:
        """The image of an item, encoded or as pixels (H, W, channels).

        Args:
            position: of the item in the data set.
            label: that the item should have.
            channels: of the pixels.
            seed: of the random numbers that the data set itself draws.

        Raises:
            Unusable: the item cannot be read.
            DataError: the item is of the wrong kind, or has another label.
        """
        ...

    def signature(self, positions: NDArray[np.int64], labels: list[int]) -> Any:
        """A JSON value that identifies these items."""
        ...


@dataclass(frozen=True)
class Items:
    """Items of a data set.

    Attributes:
        data_set: holds them.
        positions: theirs in the data set, (N,).
    """

    data_set: DataSet
    positions: NDArray[np.int64]


@dataclass(frozen=True)
class Images:
    """The images of one split.

    Attributes:
        files: their paths, sorted within each class; names, where the images are not in files.
        labels: their classes, positions in ``classes``.
        classes: names of the classes.
        pixels: (N, H, W, C), uint8, or None where the images are to be read.
        unlabelled: how many of them, the last ones, have labels that a model gave them.
        items: where the images are read from a data set, not from files.
    """

    files: list[str]
    labels: list[int]
    classes: list[str]
    pixels: NDArray[np.uint8] | None = None
    unlabelled: int = 0
    items: Items | None = None

    def __len__(self) -> int:
        return len(self.files)

    @cached_property
    def signature(self) -> str:
        """A hash of names, labels, and pixels, or sizes and times of files, to distinguish lists of images.

        The time of a file's last change saves reading gigabytes. If it differs although the images do not
        (a copy), results are only measured again.
        """
        if self.items is not None:
            held = self.items.data_set.signature(self.items.positions, self.labels)
            return digest([held, self.items.positions.tolist(), self.labels, self.classes])
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
            items=self.items and replace(self.items, positions=self.items.positions[indices]),
        )

    def stored(self, index: int, channels: int, seed: int) -> Contents | NDArray[np.uint8]:
        """An image as it is stored: encoded, or as pixels (H, W, C).

        Args:
            index: its position in this list.
            channels: of the pixels of items.
            seed: of random numbers that a data set itself draws.

        Raises:
            Unusable: it cannot be read.
            DataError: it is an item of the wrong kind, or has another label.
        """
        if self.pixels is not None:
            pixels: NDArray[np.uint8] = self.pixels[index]
            return pixels
        if self.items is not None:
            position = int(self.items.positions[index])
            return self.items.data_set.read(position, self.labels[index], channels, seed)
        return read_file(self.files[index])

    def decoded(self, index: int, channels: int, seed: int) -> NDArray[np.uint8]:
        """The pixels of an image, (H, W, C); arguments and errors as for :meth:`stored`."""
        stored = self.stored(index, channels, seed)
        return decode(stored, channels) if isinstance(stored, Contents) else stored

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

    def first(self, count: int) -> NDArray[np.int64]:
        """Positions of the first images.

        Raises:
            DataError: there are not so many.
        """
        self._check_enough(count)
        return np.arange(count)

    def equal_part(self, count: int) -> Images:
        """A part of the images with equal numbers of each class (up to one), the same every time.

        Raises:
            DataError: there are not so many.
        """
        return self.subset(self.balanced(count))

    def balanced(self, count: int) -> NDArray[np.int64]:
        """Positions of the images of :meth:`equal_part`, in order."""
        self._check_enough(count)
        order = np.random.default_rng(0).permutation(len(self))
        labels = np.array(self.labels)[order]
        turn = np.empty_like(labels)
        for label in np.unique(labels):
            members = labels == label
            turn[members] = np.arange(members.sum())
        return np.sort(order[np.lexsort((labels, turn))[:count]])

    def _check_enough(self, count: int) -> None:
        if count > len(self):
            raise DataError(f"cannot take {count} images of {len(self)}")


def _stamp(file: Path) -> list[int] | None:
    """Size and time of the last change; None if there is no such file, which may be skipped."""
    try:
        state = file.stat()
    except OSError:
        return None
    return [state.st_size, state.st_mtime_ns]
