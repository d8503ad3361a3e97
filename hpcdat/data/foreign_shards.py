"""Tar files made by other programs: what their members are, and the index made of them.

The members follow WebDataset's naming: those with the same path up to the first dot of the last component are
one sample, KEY.jpg with its label in KEY.cls or KEY.json. Where samples have no labels, the folder is the
class: CLASS/NAME.jpg.
"""

from __future__ import annotations

import json
import os
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from hpcdat.data.encoded_images import READERS, PackedStrings
from hpcdat.data.image_folder import IMAGE_SUFFIXES
from hpcdat.data.images import DataError
from hpcdat.data.shard_index import Index
from hpcdat.data.shards import BLOCK, Shards, with_common_beginnings
from hpcdat.distributed.stop_signals import installed_stop_request
from hpcdat.errors import Stopped, first_few, shorten
from hpcdat.progress import Progress

LABEL_KEYS = ("label", "cls")
"""Keys of a label in KEY.json."""
MOST_BYTES = 2**32 - 1
"""Of an image."""
MOST_LABEL_BYTES = 2**20
"""Of KEY.cls and KEY.json."""
MOST_BYTES_AT_END = 2**20
"""Of the zeros after the last member that are checked; programs write 10 KB or less."""


@dataclass
class _Scanned:
    """The images of one tar file.

    Attributes:
        offsets: where each begins, blocks.
        sizes: bytes of each.
        checksums: CRC-32 of each.
        names: their paths in the tar file.
        labels: their labels; empty if their folders are their classes.
        unlabelled: how many have no label.
        left_out: members that belong to no image.
    """

    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    checksums: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    unlabelled: int = 0
    left_out: int = 0


def index_tars(folder: Path, names: Sequence[str], classes: list[str] | None, progress: Progress) -> Index:
    """Read tar files made by other programs from end to end, several at once, and index their images.

    Args:
        folder: holds the tar files.
        names: theirs, in the order of the images.
        classes: names of the classes, or None if labels are numbers alone.
        progress: counts the tar files.

    Raises:
        DataError: a file is no tar file, has a member that cannot be used, or a label is wrong.
        Stopped: a stop was requested.
    """
    states = [(folder / name).stat() for name in names]
    stop = installed_stop_request()
    size = sum(state.st_size for state in states) / 1e9
    progress.say(f"{folder}: indexing {len(names):,} tar files, {size:.3g} GB, which takes place once")
    progress.begin("indexing tar files", len(names))
    scanned = []
    threads = ThreadPoolExecutor(READERS, thread_name_prefix="tar")
    try:
        for one in threads.map(lambda name: _scan(folder / name), names):
            if stop is not None and stop.requested:
                raise Stopped(f"stopped while indexing the tar files in {folder}; the same command resumes")
            scanned.append(one)
            progress.step()
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
        progress.end()
    if left_out := sum(one.left_out for one in scanned):
        progress.say(f"{folder}: left out: {left_out:,} members that are neither images nor their labels")
    paths = [name for one in scanned for name in one.names]
    if not paths:
        raise DataError(f"{folder}: no images in its tar files; expected {', '.join(IMAGE_SUFFIXES)}")
    labels, found = _labels(folder, names, scanned, classes)
    return Index(
        Shards(
            PackedStrings.of(names),
            np.repeat(np.arange(len(names)), [len(one.names) for one in scanned]).astype(
                np.min_scalar_type(len(names))
            ),
            np.array([offset for one in scanned for offset in one.offsets], dtype=np.uint32),
            np.array([size for one in scanned for size in one.sizes], dtype=np.uint32),
            np.array([checksum for one in scanned for checksum in one.checksums], dtype=np.uint32),
            with_common_beginnings(paths),
            of_pack=np.array([False]),
        ),
        labels,
        found,
        numbered=classes is None and any(one.labels for one in scanned),
        bytes_of=np.array([state.st_size for state in states]),
        times_of=np.array([state.st_mtime_ns for state in states]),
    )


def _labels(
    folder: Path, tars: Sequence[str], scanned: Sequence[_Scanned], classes: list[str] | None
) -> tuple[NDArray[np.int64], list[str]]:
    """The label of each image, and the names of the classes."""
    labelled = [name for name, one in zip(tars, scanned, strict=True) if one.labels]
    unlabelled = [name for name, one in zip(tars, scanned, strict=True) if one.unlabelled]
    if labelled and unlabelled:
        raise DataError(f"{folder}: {labelled[0]} has labels (KEY.cls or KEY.json), {unlabelled[0]} has none")
    if labelled:
        labels = np.array([label for one in scanned for label in one.labels], dtype=np.int64)
        if classes is None:
            return labels, _numbered(folder, labels)
        if labels.max() >= len(classes):
            at = int(labels.argmax())
            name = [name for one in scanned for name in one.names][at]
            raise DataError(
                f"{folder}: {name}: label {labels[at]}, but the classes are {len(classes)}, numbered from 0 "
                f"({first_few(classes, 3)})"
            )
        return labels, classes
    owners = [name.split("/")[-2] if "/" in name else "" for one in scanned for name in one.names]
    found = sorted(set(owners))
    if "" in found or len(found) == 1:
        at = owners.index("") if "" in found else 0
        name = [name for one in scanned for name in one.names][at]
        raise DataError(
            f"{folder}: {name}: no label; expected its label in a member {name.split('.')[0]}.cls, or images "
            "in folders named after two or more classes"
        )
    if classes is not None and (others := sorted(set(found) - set(classes))):
        raise DataError(f"{folder}: classes that are not in classes.txt: {first_few(others)}")
    numbers = {name: number for number, name in enumerate(classes or found)}
    return np.array([numbers[owner] for owner in owners], dtype=np.int64), classes or found


def _numbered(folder: Path, labels: NDArray[np.int64]) -> list[str]:
    """Numbers as names of classes, each of which has images."""
    # Not as many counters as the largest label says: it may be anything.
    found = np.unique(labels)
    if empty := np.flatnonzero(found != np.arange(len(found))).tolist():
        raise DataError(
            f"{folder}: labels up to {found[-1]}, but no image has label {empty[0]}: labels count from 0; "
            "name all classes in classes.txt if some have no images"
        )
    return [str(number) for number in range(len(found))]


def _scan(tar: Path) -> _Scanned:
    """Read one tar file.

    Raises:
        DataError: it is none, or has a member that cannot be used.
    """
    found = _Scanned()
    try:
        with tar.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as opened:
            for key, members in groupby(_members(opened, tar), key=lambda member: _key(member.name)):
                _add_sample(found, tar, file, key, list(members))
            # The library takes a damaged header for the end.
            if any(os.pread(file.fileno(), MOST_BYTES_AT_END, opened.offset)):
                raise DataError(
                    f"{tar}: damaged at byte {opened.offset:,}, or several tar files in one; make it again"
                )
    except tarfile.TarError as error:
        raise DataError(f"{tar}: cannot be read as a tar file: {error}") from None
    except OSError as error:
        raise DataError(f"{tar}: cannot be read: {error.strerror or error}") from None
    if found.labels and found.unlabelled:
        raise DataError(f"{tar}: some images have a label (KEY.cls or KEY.json), others have none")
    return found


def _members(opened: tarfile.TarFile, tar: Path) -> Iterator[tarfile.TarInfo]:
    """The files in a tar file, without hidden ones."""
    bytes_of_tar = tar.stat().st_size
    while (member := opened.next()) is not None:
        opened.members.clear()  # type: ignore[attr-defined]  # else they stay in memory
        if member.isdir():
            continue
        name = f"{tar}: {shorten(member.name)}"
        if member.issparse():
            raise DataError(f"{name}: a sparse file, of which not all bytes are stored: make the tar without")
        if not member.isfile():
            kind = "a link" if member.issym() or member.islnk() else "no regular file"
            raise DataError(f"{name}: {kind}; expected images and their labels")
        if not 0 <= member.size <= bytes_of_tar - member.offset_data:
            raise DataError(f"{name}: the tar file is truncated: it ends before this member does")
        if not member.name.rpartition("/")[2].startswith("."):
            yield member


def _key(name: str) -> str:
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(".")[0]


def _is_image(member: tarfile.TarInfo) -> bool:
    return member.name.lower().endswith(IMAGE_SUFFIXES)


def _add_sample(
    found: _Scanned, tar: Path, file: IO[bytes], key: str, members: Sequence[tarfile.TarInfo]
) -> None:
    """Add the image of a sample, or each image of several that share a key without having a label."""
    by_suffix = {member.name[len(key) + 1 :].lower(): member for member in members}
    images = [member for member in members if _is_image(member)]
    label = None
    if "cls" in by_suffix:
        label = _label_of_text(tar, by_suffix["cls"], _content(file, tar, by_suffix["cls"]))
    elif "json" in by_suffix:
        label = _label_of_json(tar, by_suffix["json"], _content(file, tar, by_suffix["json"]))
    if label is not None and len(images) != 1:
        held = f"images {first_few([image.name for image in images])}" if images else "no image"
        raise DataError(f"{tar}: {key}: expected one image and its label; found {held} with a label")
    found.left_out += len(members) - len(images) - (label is not None)
    for image in images:
        if image.size > MOST_BYTES:
            raise DataError(f"{tar}: {image.name}: {image.size:,} bytes are too many for an image")
        content = os.pread(file.fileno(), image.size, image.offset_data)
        found.offsets.append(image.offset_data // BLOCK)
        found.sizes.append(image.size)
        found.checksums.append(zlib.crc32(content))
        found.names.append(image.name.removeprefix("./"))
        if label is None:
            found.unlabelled += 1
        else:
            found.labels.append(label)


def _content(file: IO[bytes], tar: Path, member: tarfile.TarInfo) -> bytes:
    """The content of a label."""
    if member.size > MOST_LABEL_BYTES:
        raise DataError(f"{tar}: {member.name}: {member.size:,} bytes are too many for a label")
    return os.pread(file.fileno(), member.size, member.offset_data)


def _label_of_text(tar: Path, member: tarfile.TarInfo, content: bytes) -> int:
    text = content.decode(errors="replace").strip()
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise DataError(f"{tar}: {member.name}: expected a label, a number from 0, not {shorten(repr(text))}")
    return int(text)


def _label_of_json(tar: Path, member: tarfile.TarInfo, content: bytes) -> int | None:
    """The label in a JSON object; None if it has none."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{tar}: {member.name}: no JSON: {error}") from None
    label = (
        next((value[key] for key in LABEL_KEYS if key in value), None) if isinstance(value, dict) else None
    )
    if label is None:
        return None
    if type(label) is not int or not 0 <= label < 10**9:
        raise DataError(
            f"{tar}: {member.name}: expected a label, a number from 0, not {shorten(repr(label))}"
        )
    return label
