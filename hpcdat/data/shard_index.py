"""The index of a folder of shards: which image lies where, with its label, name and checksum."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcdat.data.encoded_images import PackedStrings
from hpcdat.data.images import DataError, Images
from hpcdat.data.shards import Shards
from hpcdat.errors import first_few
from hpcdat.storage.atomic_files import write_atomically

INDEX_FILE = "index.npz"
"""Name of the index, next to the shards."""
CLASSES_FILE = "classes.txt"
"""Name of the file with the names of the classes, one a line, next to the shards."""
VERSION = 1
"""Of the format of an index."""


@dataclass(frozen=True)
class Index:
    """The index of a folder of shards.

    Attributes:
        shards: the images; their shards' names, in the file, are relative to the folder.
        labels: (N,), integers, positions in ``classes``.
        classes: names of the classes.
        numbered: whether the classes have no names but their numbers.
        bytes_of: (shards,), int64, size of each shard.
        times_of: (shards,), int64, when each was last changed, nanoseconds; only compared for shards made by
            other programs, since a copy has another time.
        plan: what ``hpcdat pack`` made the shards from, as a hash; empty for shards of other programs.
    """

    shards: Shards
    labels: NDArray[Any]
    classes: list[str]
    numbered: bool
    bytes_of: NDArray[np.int64]
    times_of: NDArray[np.int64]
    plan: str = ""

    @property
    def images(self) -> Images:
        """The images with their labels."""
        return Images(self.shards, self.labels.astype(np.int64), self.classes)

    def in_folder(self, folder: Path) -> Index:
        """The same index with the paths of shards in a folder."""
        paths = PackedStrings.of(f"{folder}/{name}" for name in self.shards.shards)
        return replace(self, shards=replace(self.shards, shards=paths))

    def with_classes_of(self, training: Index, folder: Path) -> Index:
        """This index of test images with the classes of the training images.

        Args:
            training: the index of those.
            folder: of these shards, for the message.

        Raises:
            DataError: it has others.
        """
        expected, found = training.classes, self.classes
        if self.numbered and training.numbered and len(found) <= len(expected):
            return replace(self, classes=expected)
        if found != expected:
            different = sorted(set(found) ^ set(expected)) or ["their order"]
            raise DataError(f"{folder}: other classes than in training: {first_few(different)}")
        return self


def write_index(file: Path, index: Index) -> None:
    """Write an index atomically.

    Raises:
        OSError: it could not be written.
    """
    classes = PackedStrings.of(index.classes)
    write_arrays(
        file,
        {
            "version": np.array([VERSION]),
            "labels": index.labels.astype(np.min_scalar_type(len(index.classes))),
            "classes": classes.data,
            "class_ends": classes.ends,
            "numbered": np.array([index.numbered]),
            "bytes_of": index.bytes_of,
            "times_of": index.times_of,
            "plan": np.array([index.plan]),
            **index.shards.arrays(),
        },
    )


def read_index(file: Path) -> Index | None:
    """Read an index; None if there is none.

    Raises:
        DataError: it cannot be read, or is none.
    """
    arrays = read_arrays(file)
    if arrays is None:
        return None
    try:
        if arrays["version"].tolist() != [VERSION]:
            raise DataError(f"{file}: of another version of hpcdat: remove it, and make the shards again")
        return Index(
            Shards.from_arrays(arrays),
            arrays["labels"],
            list(PackedStrings(arrays["classes"], arrays["class_ends"])),
            bool(arrays["numbered"][0]),
            arrays["bytes_of"],
            arrays["times_of"],
            str(arrays["plan"][0]),
        )
    except (KeyError, IndexError) as error:
        raise DataError(f"{file}: no index of shards ({error} is missing): remove it") from None


def write_arrays(file: Path, arrays: dict[str, NDArray[Any]]) -> None:
    """Write arrays to an .npz file atomically.

    Raises:
        OSError: it could not be written.
    """
    write_atomically(file, lambda opened: np.savez(opened, allow_pickle=False, **arrays))


def read_arrays(file: Path) -> dict[str, NDArray[Any]] | None:
    """The arrays of an .npz file; None if there is no such file.

    Raises:
        DataError: it cannot be read or is damaged.
    """
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return dict(arrays.items())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}") from None
    except (ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise DataError(f"{file}: damaged ({error}): restore it from a copy, or remove it") from None


def read_classes(folder: Path) -> list[str] | None:
    """The names of the classes in ``classes.txt``, next to the shards or one folder above; None without one.

    Raises:
        DataError: it cannot be read, or names a class twice or none.
    """
    for file in (folder / CLASSES_FILE, folder.parent / CLASSES_FILE):
        try:
            names = file.read_text(errors="surrogateescape").splitlines()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise DataError(f"{file}: cannot be read: {error.strerror}") from None
        if not names or "" in names or len(set(names)) < len(names):
            raise DataError(f"{file}: expected the name of one class on each line, each once")
        return names
    return None
