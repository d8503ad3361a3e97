"""The shards that ``hpcdat pack`` writes: which images each holds, its tar file, and the index of all.

The images of a split are shuffled, always alike, before they are divided, so that programs that read shards
from beginning to end, such as WebDataset, meet all classes in each. Each image is a member ``KEY.jpg`` (or
.png, by its content) with its label in ``KEY.cls``; its KEY is its position in the list of images.

The sizes of all images are read first: shards are then of one size, the space they take is known, and so is
which image lies in which shard before any is written, by however many workers.
"""

from __future__ import annotations

import io
import tarfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Literal

import numpy as np
from numpy.typing import NDArray

from hpcdat.data.corrupt_images import complaint_about
from hpcdat.data.encoded_images import Files, PackedStrings
from hpcdat.data.image_file import Contents, Unusable, decode
from hpcdat.data.images import DataError, Images
from hpcdat.data.read_ahead import Read, contents_of
from hpcdat.data.sampler import Indices
from hpcdat.data.shard_index import CLASSES_FILE, INDEX_FILE, Index, read_arrays, write_arrays, write_index
from hpcdat.data.shards import BLOCK, Shards, with_common_beginnings
from hpcdat.storage.atomic_files import digest, digest_of_array, write_atomically

HINT = "(--corrupt skip leaves such images out)"
"""What an error about images that cannot be read ends with."""
SUFFIXES = {
    "JPEG": "jpg",
    "PNG": "png",
    "GIF": "gif",
    "BMP": "bmp",
    "TIFF": "tif",
    "PPM": "ppm",
    "WEBP": "webp",
}
"""Endings of the members, by what the images are."""
TIME = 946_684_800
"""Of all members, seconds: 1 January 2000. The same images packed twice give the same bytes."""
BLOCKS_OF_LABEL = 3
"""Blocks that an image takes in addition to its content: two headers, and the label."""


@dataclass(frozen=True)
class Plan:
    """What the shards of one split are made from.

    Attributes:
        images: of the split, files in folders.
        folder: that holds their classes.
        sizes: (N,), int64, bytes of each.
        shard_bytes: largest size of a shard, unless a single image is larger.
    """

    images: Images
    folder: Path
    sizes: NDArray[np.int64]
    shard_bytes: int

    @cached_property
    def members(self) -> list[Indices]:
        """Positions of the images of each shard, in their order in it."""
        order = np.random.default_rng(0).permutation(len(self.images))
        ends = np.cumsum(self._bytes()[order])
        members, start = [], 0
        while start < len(order):
            before = int(ends[start - 1]) if start else 0
            within = np.searchsorted(ends, before + self.shard_bytes - tarfile.RECORDSIZE, side="right")
            stop = max(start + 1, int(within))
            members.append(order[start:stop])
            start = stop
        return members

    def bytes_of(self, shard: int) -> int:
        """Bytes of a shard, at most."""
        return int(self._bytes()[self.members[shard]].sum()) + tarfile.RECORDSIZE

    def _bytes(self) -> NDArray[np.int64]:
        """Bytes that each image takes in a shard."""
        return (-(-self.sizes // BLOCK) + BLOCKS_OF_LABEL) * BLOCK

    @cached_property
    def paths(self) -> Files:
        """CLASS/NAME of each image."""
        files = self.images.files
        assert isinstance(files, Files)
        folders = [folder.removeprefix(f"{self.folder}/") for folder in files.folders]
        return with_common_beginnings(Files(PackedStrings.of(folders), files.folder_of, files.names))

    @cached_property
    def signature(self) -> str:
        """A hash of names, sizes and labels of the images, and of the size of the shards."""
        return digest(
            [
                list(self.paths.folders),
                self.images.classes,
                self.shard_bytes,
                digest_of_array(self.paths.folder_of.astype(np.int64)),
                digest_of_array(self.paths.names.data),
                digest_of_array(self.paths.names.ends.astype(np.int64)),
                digest_of_array(self.images.labels),
                digest_of_array(self.sizes),
            ]
        )


@dataclass(frozen=True)
class Part:
    """What the index holds about one shard, which is complete when this is written.

    Attributes:
        positions: (n,), of its images in the list of all.
        offsets, sizes, checksums: (n,), uint32, as in :class:`Shards`.
        left_out: (k,), positions of images that cannot be read.
    """

    positions: Indices
    offsets: NDArray[np.uint32]
    sizes: NDArray[np.uint32]
    checksums: NDArray[np.uint32]
    left_out: Indices


def shard_name(folder: Path, number: int) -> str:
    """The name of a shard in a folder, such as ``train-000000.tar``."""
    return f"{folder.name}-{number:06d}.tar"


def read_part(folder: Path, number: int) -> Part | None:
    """What the index will hold about a shard; None if the shard is not complete.

    Raises:
        DataError: the file is damaged.
    """
    shard = folder / shard_name(folder, number)
    arrays = read_arrays(shard.with_suffix(".npz"))
    return Part(**arrays) if arrays is not None and shard.exists() else None


def pack_shard(
    plan: Plan,
    number: int,
    read: Iterable[Read],
    folder: Path,
    corrupt: Literal["stop", "skip"],
) -> list[str]:
    """Write a shard and its part of the index, both atomically.

    Args:
        plan: of all shards.
        number: of this one.
        read: its images, in order.
        folder: of the shards.
        corrupt: what happens to an image that cannot be read.

    Returns:
        Complaints about the images that are left out.

    Raises:
        DataError: an image cannot be read, and is not to be left out.
        OSError: the shard cannot be written.
    """
    shard = folder / shard_name(folder, number)
    entries: list[tuple[int, int, int, int]] = []
    left_out: list[int] = []
    complaints: list[str] = []

    def write(file: IO[bytes]) -> None:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for position, one in zip(plan.members[number].tolist(), read, strict=True):
                try:
                    suffix = SUFFIXES[_inspected(one).format]
                except Unusable as reason:
                    complaint = complaint_about(plan.images.files[position], reason)
                    if corrupt == "stop":
                        raise DataError(f"{complaint} {HINT}") from None
                    complaints.append(complaint)
                    left_out.append(position)
                    continue
                assert isinstance(one, bytes)
                at = _add(tar, f"{position:09d}.{suffix}", one)
                _add(tar, f"{position:09d}.cls", b"%d" % plan.images.labels[position])
                entries.append((position, at // BLOCK, len(one), zlib.crc32(one)))

    write_atomically(shard, write)
    positions, offsets, sizes, checksums = np.array(entries, dtype=np.int64).reshape(-1, 4).T
    part = Part(
        positions,
        offsets.astype(np.uint32),
        sizes.astype(np.uint32),
        checksums.astype(np.uint32),
        np.array(left_out, dtype=np.int64),
    )
    write_arrays(shard.with_suffix(".npz"), vars(part))
    return complaints


def _inspected(read: Read) -> Contents:
    """What an image that was read holds; formats that only a decoder can check are decoded.

    Raises:
        Unusable: it cannot be used.
    """
    contents = contents_of(read)
    if not contents.plain:
        decode(contents, 3)
    return contents


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> int:
    """Add a member to a tar file; return where its content begins."""
    member = tarfile.TarInfo(name)
    member.size, member.mtime = len(content), TIME
    at = tar.offset + BLOCK
    tar.addfile(member, io.BytesIO(content))
    return at


def write_index_of(plan: Plan, parts: Sequence[Part], folder: Path) -> Index:
    """Write the index of all shards and the names of the classes, and remove the parts.

    Args:
        plan: of the shards.
        parts: of all shards.
        folder: of the shards.

    Raises:
        DataError: no image of a class can be read.
        OSError: the index cannot be written.
    """
    positions = np.concatenate([part.positions for part in parts])
    order = np.argsort(positions)
    labels = plan.images.labels[positions[order]]
    counts = np.bincount(labels, minlength=len(plan.images.classes))
    if not counts.all():
        name = plan.images.classes[int(counts.argmin())]
        raise DataError(f"{plan.folder}: no image of class {name} can be read")
    names = [shard_name(folder, number) for number in range(len(parts))]
    shard_of = np.repeat(np.arange(len(parts)), [len(part.positions) for part in parts])
    index = Index(
        Shards(
            PackedStrings.of(names),
            shard_of[order].astype(np.min_scalar_type(len(parts))),
            np.concatenate([part.offsets for part in parts])[order],
            np.concatenate([part.sizes for part in parts])[order],
            np.concatenate([part.checksums for part in parts])[order],
            plan.paths.take(positions[order]),
            of_pack=np.array([True]),
        ),
        labels,
        plan.images.classes,
        numbered=False,
        bytes_of=np.array([(folder / name).stat().st_size for name in names]),
        times_of=np.zeros(len(names), np.int64),
        plan=plan.signature,
    )
    classes = "".join(f"{name}\n" for name in plan.images.classes)
    write_atomically(folder / CLASSES_FILE, lambda file: file.write(classes.encode(errors="surrogateescape")))
    write_index(folder / INDEX_FILE, index)
    for name in names:
        (folder / name).with_suffix(".npz").unlink(missing_ok=True)
    return index
