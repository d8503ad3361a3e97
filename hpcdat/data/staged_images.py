"""Images of which a node has copies on a disk of its own."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from hpcdat.data.encoded_images import EncodedImages
from hpcdat.data.image_file import Unusable
from hpcdat.data.shard_files import read_at

BLOCK = 512
"""Bytes; every copy begins at a multiple of it, so that 32 bits hold its place in a file of up to 2 TB."""


@dataclass(frozen=True, eq=False)
class Copies:
    """Where copies of images lie.

    Attributes:
        files: that hold them.
        file_of: (N,), uint16, the file of each, from 1; 0 for an image without a copy.
        blocks: (N,), uint32, where each begins, in blocks.
        sizes: (N,), uint32, bytes.
        checksums: (N,), uint32, CRC-32.
    """

    files: Sequence[Path]
    file_of: NDArray[np.uint16]
    blocks: NDArray[np.uint32]
    sizes: NDArray[np.uint32]
    checksums: NDArray[np.uint32]

    @classmethod
    def none_of(cls, count: int) -> Copies:
        """No copies, of so many images."""
        blocks, sizes, checksums = np.zeros((3, count), np.uint32)
        return cls([], np.zeros(count, np.uint16), blocks, sizes, checksums)

    def with_file(
        self, file: Path, number: int, indices: NDArray[np.int64], index: dict[str, NDArray[Any]]
    ) -> Copies:
        """With the copies of one more file.

        Args:
            file: holds them.
            number: of the file, from 1.
            indices: positions of the images whose copies it holds.
            index: ``blocks``, ``sizes`` and ``checksums`` of these; one of size 0 is none.
        """
        self.file_of[indices] = np.where(index["sizes"] > 0, number, 0)
        for name in ("blocks", "sizes", "checksums"):
            getattr(self, name)[indices] = index[name]
        return replace(self, files=[*self.files, file])

    def take(self, indices: NDArray[np.int64]) -> Copies:
        """Those of the images at these positions, in this order."""
        return Copies(
            self.files,
            self.file_of[indices],
            self.blocks[indices],
            self.sizes[indices],
            self.checksums[indices],
        )

    def read(self, index: int) -> bytes:
        """The copy of an image that has one.

        Raises:
            Unusable: it cannot be read, or has changed.
        """
        file = self.files[int(self.file_of[index]) - 1]
        try:
            copy = read_at(str(file), int(self.blocks[index]) * BLOCK, int(self.sizes[index]))
        except Unusable as reason:
            raise Unusable(f"its copy in {file}: {reason}") from None
        if zlib.crc32(copy) != self.checksums[index]:
            raise Unusable(f"its copy in {file} is damaged (checksum): remove that file")
        return copy


@dataclass(frozen=True, eq=False)
class Staged(EncodedImages):
    """Images that are read from copies where there are any, and elsewhere from their place.

    Attributes:
        origin: the images in their place, whose names they keep.
        copies: of some or all of them.
    """

    origin: EncodedImages
    copies: Copies

    def __len__(self) -> int:
        return len(self.origin)

    @property
    def inspected(self) -> bool:
        """As of the images in their place."""
        return self.origin.inspected

    def name(self, index: int) -> str:
        """The name of an image in its place."""
        return self.origin.name(index)

    def read(self, index: int) -> bytes:
        """An encoded image, from its copy if it has one.

        Raises:
            Unusable: it, or its copy, cannot be read.
        """
        return self.copies.read(index) if self.copies.file_of[index] else self.origin.read(index)

    def take(self, indices: NDArray[np.int64]) -> Self:
        """The images at these positions, in this order."""
        return replace(self, origin=self.origin.take(indices), copies=self.copies.take(indices))

    def stamps(self) -> NDArray[np.int64]:
        """Those of the images in their place."""
        return self.origin.stamps()

    def name_hash(self) -> str:
        """That of the images in their place."""
        return self.origin.name_hash()
