"""The images of a split: encoded in files or shards, pixels in memory, or items of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hpcdat.data.encoded_images import EncodedImages
from hpcdat.data.image_file import Contents, decode, inspect
from hpcdat.errors import InputError
from hpcdat.seeds import derive
from hpcdat.storage.atomic_files import digest, digest_of_array


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


@dataclass(frozen=True, eq=False)
class Images:
    """The images of one split: encoded, as pixels in memory, or items of a data set.

    Attributes:
        files: the encoded images, in the order of their names within each class; only names, where the images
            are pixels or items.
        labels: (N,), int64, their classes, positions in ``classes``.
        classes: names of the classes.
        pixels: (N, H, W, C), uint8, or None where the images are to be read.
        unlabelled: how many of them, the last ones, have labels that a model gave them.
        items: where the images are read from a data set, not from files.
    """

    files: Sequence[str]
    labels: NDArray[np.int64]
    classes: list[str]
    pixels: NDArray[np.uint8] | None = None
    unlabelled: int = 0
    items: Items | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", np.asarray(self.labels, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.files)

    @property
    def encoded(self) -> EncodedImages | None:
        """The encoded images, or None if they are pixels or items."""
        return self.files if isinstance(self.files, EncodedImages) else None

    @property
    def most_frequent(self) -> int:
        """Number of images of the most frequent class."""
        return int(np.bincount(self.labels).max())

    @cached_property
    def signature(self) -> str:
        """A hash of names, labels, and what identifies the images' contents."""
        if self.encoded is not None:
            return digest([self.encoded.signature(), digest_of_array(self.labels)])
        if self.items is not None:
            held = self.items.data_set.signature(self.items.positions, self.labels.tolist())
            return digest([held, self.items.positions.tolist(), self.labels.tolist(), self.classes])
        assert self.pixels is not None
        names = [f"{Path(file).parent.name}/{Path(file).name}" for file in self.files]
        return digest([names, digest_of_array(self.labels), digest_of_array(self.pixels)])

    def subset(self, indices: NDArray[np.int64]) -> Images:
        """The images at these positions, in this order."""
        return Images(
            [self.files[i] for i in indices] if self.encoded is None else self.encoded.take(indices),
            self.labels[indices],
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
            return self.items.data_set.read(position, int(self.labels[index]), channels, seed)
        assert self.encoded is not None
        return inspect(self.encoded.read(index))

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
        labels = self.labels
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
        labels = self.labels[order]
        by_class = labels.argsort(kind="stable")
        first = np.searchsorted(labels[by_class], labels)
        turn = np.empty_like(labels)
        turn[by_class] = np.arange(len(labels)) - first[by_class]
        return np.sort(order[np.lexsort((labels, turn))[:count]])

    def _check_enough(self, count: int) -> None:
        if count > len(self):
            raise DataError(f"cannot take {count} images of {len(self)}")
