"""Images in shards: tar files in which an index knows the place of each image.

Each shard is opened once and read at random, so that sampling does not depend on how images are stored.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from hpcdat.data.encoded_images import Files, PackedStrings, SendableImages
from hpcdat.data.image_file import Unusable
from hpcdat.data.shard_files import read_at
from hpcdat.storage.atomic_files import digest, digest_of_array

BLOCK = 512
"""Bytes of a block of a tar file; the content of each of its members begins at one."""


@dataclass(frozen=True, eq=False)
class Shards(SendableImages):
    """Images in shards. Of 1.28 million, with labels, this takes less than 50 MB.

    Attributes:
        shards: paths of the tar files.
        shard_of: (N,), unsigned, the shard of each image.
        offsets: (N,), uint32, where each begins, in blocks.
        sizes: (N,), uint32, bytes of each.
        checksums: (N,), uint32, CRC-32 of each.
        paths: CLASS/NAME of each; the beginning of ``folders`` that all names of a class have in common is
            stored with the class.
        of_pack: (1,), whether ``hpcdat pack`` has written the shards; an array, as all that workers send.
    """

    shards: PackedStrings
    shard_of: NDArray[Any]
    offsets: NDArray[np.uint32]
    sizes: NDArray[np.uint32]
    checksums: NDArray[np.uint32]
    paths: Files
    of_pack: NDArray[np.bool_]
    kind = "shards"

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def inspected(self) -> bool:
        """Whether every image was inspected when it was packed."""
        return bool(self.of_pack[0])

    def name(self, index: int) -> str:
        """Shard, class and name of an image, as a path."""
        return f"{self.shards[int(self.shard_of[index])]}/{self.paths.name(index)}"

    def read(self, index: int) -> bytes:
        """An encoded image.

        Raises:
            Unusable: the shard is missing, truncated or damaged.
        """
        shard = self.shards[int(self.shard_of[index])]
        image = read_at(shard, int(self.offsets[index]) * BLOCK, int(self.sizes[index]))
        if zlib.crc32(image) != self.checksums[index]:
            raise Unusable("the shard is damaged: the checksum of the image differs from that in the index")
        return image

    def take(self, indices: NDArray[np.int64]) -> Self:
        """The images at these positions, in this order."""
        return replace(
            self,
            shard_of=self.shard_of[indices],
            offsets=self.offsets[indices],
            sizes=self.sizes[indices],
            checksums=self.checksums[indices],
            paths=self.paths.take(indices),
        )

    def stamps(self) -> NDArray[np.int64]:
        """Sizes and checksums, (N, 2)."""
        return np.stack([self.sizes, self.checksums], axis=1).astype(np.int64)

    def name_hash(self) -> str:
        """A hash of the names with their classes'."""
        numbers = (self.paths.folder_of, self.paths.names.ends)
        return digest(
            [
                list(self.paths.folders),
                *(digest_of_array(array.astype(np.int64)) for array in numbers),
                digest_of_array(self.paths.names.data),
            ]
        )

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Shards, places, checksums and names."""
        return {
            "shards": self.shards.data,
            "shard_ends": self.shards.ends,
            "shard_of": self.shard_of,
            "offsets": self.offsets,
            "sizes": self.sizes,
            "checksums": self.checksums,
            "of_pack": self.of_pack,
            **self.paths.arrays(),
        }

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> Shards:
        """The list of these shards, places, checksums and names."""
        return cls(
            PackedStrings(arrays["shards"], arrays["shard_ends"]),
            arrays["shard_of"],
            arrays["offsets"],
            arrays["sizes"],
            arrays["checksums"],
            Files.from_arrays(arrays),
            arrays["of_pack"],
        )


def with_common_beginnings(paths: Iterable[str]) -> Files:
    """A list of paths in which what all names of a folder begin with is stored once, with the folder."""
    files = Files.of(paths)
    names, folder_of = list(files.names), files.folder_of
    order, beginnings, start = np.argsort(folder_of, kind="stable").tolist(), [], 0
    for folder, end in zip(files.folders, np.cumsum(np.bincount(folder_of)).tolist(), strict=True):
        common = os.path.commonprefix([names[index] for index in order[start:end]])  # noqa: RUF071
        beginnings.append(folder + common)
        for index in order[start:end]:
            names[index] = names[index][len(common) :]
        start = end
    return Files(PackedStrings.of(beginnings), folder_of, PackedStrings.of(names))
