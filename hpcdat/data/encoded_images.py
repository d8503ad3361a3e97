"""Lists of encoded images, such as files: their names, and how each is read.

A list of ImageNet's size takes about 40 MB, a third of what Python's strings would take, and can be sent to
other workers as arrays.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from hpcdat.data.image_file import read_bytes
from hpcdat.storage.atomic_files import digest, digest_of_array

STRINGS_AT_ONCE = 1 << 16
"""Strings that are copied at once, since their positions take eight times the memory of their bytes."""

STAMPS_AT_ONCE = 4096
"""Images whose stamps are found between two polls."""

READERS = 32
"""Files that are read at once: a file system that takes 5 ms for each then gives 6,400 a second."""


class Names(Sequence[str], ABC):
    """Names that are made when they are asked for. Such lists are equal to any other of the same names."""

    @abstractmethod
    def name(self, index: int) -> str:
        """The name at a position from 0."""

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return [self.name(i) for i in range(*index.indices(len(self)))]
        return self.name(range(len(self))[index])

    def __iter__(self) -> Iterator[str]:
        return (self.name(index) for index in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(self) != len(other):
            return False
        return all(one == two for one, two in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # lists are compared by all of their names


class PackedStrings(Names):
    """Strings in one array of bytes.

    Args:
        data: their bytes, one after the other, uint8.
        ends: (N,), uint32 or uint64, where each ends in ``data``.
    """

    def __init__(self, data: NDArray[np.uint8], ends: NDArray[Any]) -> None:
        self.data, self.ends = data, ends

    @classmethod
    def of(cls, strings: Iterable[str]) -> PackedStrings:
        """Pack strings, which may be file names that are no text."""
        lengths, data = [], bytearray()
        for string in strings:
            encoded = os.fsencode(string)
            lengths.append(len(encoded))
            data += encoded
        ends = np.cumsum(np.array(lengths, dtype=np.uint64), dtype=np.uint64)
        return cls(np.frombuffer(data, np.uint8), _in_fewest_bytes(ends))

    @classmethod
    def joined(cls, parts: Sequence[PackedStrings]) -> PackedStrings:
        """The strings of several, one after the other."""
        starts = np.cumsum([0, *(len(part.data) for part in parts)], dtype=np.uint64)
        ends = [part.ends + start for part, start in zip(parts, starts[:-1], strict=True)]
        return cls(np.concatenate([part.data for part in parts]), _in_fewest_bytes(np.concatenate(ends)))

    def __len__(self) -> int:
        return len(self.ends)

    def name(self, index: int) -> str:
        """The string at a position from 0."""
        start = int(self.ends[index - 1]) if index else 0
        return os.fsdecode(self.data[start : int(self.ends[index])].tobytes())

    def take(self, indices: NDArray[np.int64]) -> PackedStrings:
        """The strings at these positions, in this order."""
        starts = np.where(indices == 0, 0, self.ends[indices - 1].astype(np.int64))
        lengths = self.ends[indices].astype(np.int64) - starts
        ends = np.cumsum(lengths)
        data = np.empty(int(ends[-1]) if len(ends) else 0, np.uint8)
        done = 0
        for at in range(0, len(indices), STRINGS_AT_ONCE):
            of_chunk = lengths[at : at + STRINGS_AT_ONCE]
            first = starts[at : at + STRINGS_AT_ONCE]
            before = np.cumsum(of_chunk) - of_chunk
            size = int(of_chunk.sum())
            data[done : done + size] = self.data[np.repeat(first - before, of_chunk) + np.arange(size)]
            done += size
        return PackedStrings(data, _in_fewest_bytes(ends.astype(np.uint64)))


class EncodedImages(Names):
    """Encoded images: a sequence of their names, which are in messages, with what each holds.

    Such a list can be pickled.
    """

    @property
    def inspected(self) -> bool:
        """Whether every image has been inspected, and is compared with a checksum whenever it is read."""
        return False

    @abstractmethod
    def name(self, index: int) -> str:
        """The name of an image, by which a user finds it."""

    @abstractmethod
    def read(self, index: int) -> bytes:
        """The encoded image; several threads may call this at once.

        Raises:
            Unusable: it cannot be read.
        """

    @abstractmethod
    def take(self, indices: NDArray[np.int64]) -> Self:
        """The images at these positions, in this order."""

    @abstractmethod
    def stamps(self) -> NDArray[np.int64]:
        """What the content of each image is known by without reading it: size and another number, (N, 2)."""

    @abstractmethod
    def name_hash(self) -> str:
        """A hash of the images' names with those of their folders, without the path to these."""

    def signature(self) -> str:
        """A hash of names and stamps, which distinguishes lists of images without reading these.

        The time of a file's last change is among the stamps. If it differs although the images do not (a
        copy), results are only measured again.
        """
        return digest([self.name_hash(), digest_of_array(self.stamps())])


class SendableImages(EncodedImages):
    """Encoded images whose list workers send each other, as arrays of numbers."""

    kind: str
    """Name of the class among those that are sent."""

    @abstractmethod
    def arrays(self) -> dict[str, NDArray[Any]]:
        """What the list consists of, by name."""

    @classmethod
    @abstractmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> Self:
        """The list that consists of these."""


@dataclass(frozen=True, eq=False)
class Files(SendableImages):
    """Image files.

    Attributes:
        folders: that hold them.
        folder_of: (N,), unsigned, the folder of each.
        names: of the files, without their folders.
    """

    folders: PackedStrings
    folder_of: NDArray[Any]
    names: PackedStrings
    kind = "files"

    @classmethod
    def of(cls, paths: Iterable[str]) -> Files:
        """A list of files.

        Args:
            paths: theirs.
        """
        numbers: dict[str, int] = {}
        folder_of: list[int] = []

        def names() -> Iterator[str]:
            for path in paths:
                folder, slash, name = path.rpartition("/")
                folder_of.append(numbers.setdefault(folder + slash, len(numbers)))
                yield name

        packed = PackedStrings.of(names())
        return cls(PackedStrings.of(numbers), _in_fewest_bytes(np.array(folder_of, dtype=np.uint64)), packed)

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        """The path of a file."""
        return self.folders[int(self.folder_of[index])] + self.names[index]

    def read(self, index: int) -> bytes:
        """The content of a file.

        Raises:
            Unusable: it cannot be read.
        """
        return read_bytes(self.name(index))

    def take(self, indices: NDArray[np.int64]) -> Self:
        """The files at these positions, in this order."""
        return type(self)(self.folders, self.folder_of[indices], self.names.take(indices))

    @classmethod
    def joined(cls, parts: Sequence[Files]) -> Files:
        """The files of several lists, one after the other."""
        starts = np.cumsum([0, *(len(part.folders) for part in parts)], dtype=np.uint64)
        folder_of = [part.folder_of + start for part, start in zip(parts, starts[:-1], strict=True)]
        return cls(
            PackedStrings.joined([part.folders for part in parts]),
            _in_fewest_bytes(np.concatenate(folder_of)),
            PackedStrings.joined([part.names for part in parts]),
        )

    def stamps(self) -> NDArray[np.int64]:
        """Sizes and times of the last change, (N, 2), bytes and ns; -1 of a file that is not there."""
        with ThreadPoolExecutor(READERS) as threads:
            return np.array(list(threads.map(_stamp, self)), dtype=np.int64).reshape(-1, 2)

    def name_hash(self) -> str:
        """A hash of the files' names with their folders'."""
        within = [Path(folder).name for folder in self.folders]
        return digest(
            [
                within,
                digest_of_array(self.folder_of.astype(np.int64)),
                digest_of_array(self.names.data),
                digest_of_array(self.names.ends.astype(np.int64)),
            ]
        )

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Names and folders."""
        return {
            "folders": self.folders.data,
            "folder_ends": self.folders.ends,
            "folder_of": self.folder_of,
            "names": self.names.data,
            "name_ends": self.names.ends,
        }

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> Self:
        """The list of these names and folders."""
        folders = PackedStrings(arrays["folders"], arrays["folder_ends"])
        return cls(folders, arrays["folder_of"], PackedStrings(arrays["names"], arrays["name_ends"]))


def stamps_with_polls(images: EncodedImages, poll: Callable[[], None]) -> NDArray[np.int64]:
    """The stamps of images, (N, 2), with a poll before those of every few thousand.

    Args:
        images: any.
        poll: of :func:`~hpcdat.distributed.uneven_work.run_unevenly`.
    """
    found = [np.empty((0, 2), np.int64)]
    for at in range(0, len(images), STAMPS_AT_ONCE):
        poll()
        found.append(images.take(np.arange(at, min(at + STAMPS_AT_ONCE, len(images)))).stamps())
    return np.concatenate(found)


def _stamp(path: str) -> tuple[int, int]:
    """Size and time of the last change; -1 if there is no such file, which may be skipped."""
    try:
        state = Path(path).stat()
    except OSError:
        return -1, -1
    return state.st_size, state.st_mtime_ns


def _in_fewest_bytes(numbers: NDArray[np.uint64]) -> NDArray[Any]:
    return numbers.astype(np.min_scalar_type(int(numbers.max()) if len(numbers) else 0))
