"""Folders of shards: their index, made when it is first needed if ``hpcdat pack`` has not made it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from hpcdat.data.foreign_shards import index_tars
from hpcdat.data.images import DataError
from hpcdat.data.shard_index import INDEX_FILE, Index, read_classes, read_index, write_index
from hpcdat.distributed.stop_signals import installed_stop_request
from hpcdat.distributed.waiting import Wait
from hpcdat.errors import first_few
from hpcdat.progress import Progress
from hpcdat.storage.atomic_files import check_writable, digest
from hpcdat.storage.turn_lock import taking_turns
from hpcdat.user_cache import user_cache

PACKING_FILE = "packing.json"
"""Name of the file that ``hpcdat pack`` writes first, next to the shards."""
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz", ".tar.xz", ".txz", ".tar.zst", ".tzst")
"""Endings of compressed tar files."""
SECONDS_TO_INDEX = 12 * 3600
"""How long a worker waits for another one that indexes the same tar files."""


def open_shards(folder: Path, *, quiet: bool) -> Index:
    """The index of a folder of shards.

    Tar files made by other programs are indexed if that has not been done or they have changed since.

    Args:
        folder: holds the tar files.
        quiet: show no progress.

    Raises:
        DataError: there are no shards, or not those of the index; or as :func:`index_tars`.
        Stopped: a stop was requested.
    """
    names = find_tars(folder)
    try:
        if index := existing_index(folder, names):
            return index
        file = _index_file(folder)
        return _make_index(folder, names, file, Progress(shown=not quiet)).in_folder(folder)
    except OSError as error:
        raise DataError(f"{error.filename or folder}: {error.strerror or error}") from None


def find_tars(folder: Path) -> list[str]:
    """The names of the tar files in a folder, sorted.

    Raises:
        DataError: there are none, or compressed ones.
    """
    try:
        found = sorted(file.name for file in folder.iterdir() if not file.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder}: {error.strerror}. {_expected(folder)}") from None
    if compressed := [name for name in found if name.lower().endswith(COMPRESSED)]:
        raise DataError(
            f"{folder}: {first_few(compressed, 3)}: images in compressed tar files cannot be read at random: "
            "decompress them (images hardly get smaller)"
        )
    if not (tars := [name for name in found if name.endswith(".tar")]):
        raise DataError(f"{folder}: no tar files. {_expected(folder)}")
    return tars


def _expected(folder: Path) -> str:
    return f"Expected {folder.name}/*.tar in data.root, as `hpcdat pack` writes them"


def existing_index(folder: Path, names: Sequence[str]) -> Index | None:
    """The index of a folder of shards, if there is one of the shards as they are.

    Args:
        folder: holds them.
        names: of the shards.

    Raises:
        DataError: the index is damaged, or of ``hpcdat pack`` and for other shards.
    """
    index = read_index(folder / INDEX_FILE)
    if index is not None and index.plan:
        _check_packed(folder, names, index)
        return index.in_folder(folder)
    if index is None and (folder / PACKING_FILE).exists():
        raise DataError(f"{folder}: `hpcdat pack` has not finished: call it again")
    if index is None or not _is_of(index, folder, names):
        try:
            index = read_index(_in_cache(folder))
        except RuntimeError:
            return None
    return index.in_folder(folder) if index is not None and _is_of(index, folder, names) else None


def indexed_classes(folder: Path) -> list[str]:
    """The names of the classes in a folder's index; none if it has no index.

    Raises:
        DataError: there are no shards, or as :func:`existing_index`.
    """
    index = existing_index(folder, find_tars(folder))
    return index.classes if index is not None else []


def _check_packed(folder: Path, names: Sequence[str], index: Index) -> None:
    """Check the names and sizes of shards, so that one that is missing or truncated is found at the start."""
    expected = list(index.shards.shards)
    if missing := sorted(set(expected) - set(names)):
        raise DataError(f"{folder}: shards missing that are in its {INDEX_FILE}: {first_few(missing)}")
    if others := sorted(set(names) - set(expected)):
        raise DataError(f"{folder}: tar files that are not in its {INDEX_FILE}: {first_few(others)}")
    for name, size in zip(expected, index.bytes_of.tolist(), strict=True):
        if (found := (folder / name).stat().st_size) != size:
            what = "truncated" if found < size else "another file"
            raise DataError(f"{folder / name}: {what}: {found:,} bytes, but {size:,} when it was packed")


def _is_of(index: Index, folder: Path, names: Sequence[str]) -> bool:
    """Whether an index is of these tar files, and they have not changed since."""
    states, classes = [(folder / name).stat() for name in names], read_classes(folder)
    return (
        list(index.shards.shards) == list(names)
        and index.bytes_of.tolist() == [state.st_size for state in states]
        and index.times_of.tolist() == [state.st_mtime_ns for state in states]
        and (classes is None or (classes == index.classes and not index.numbered))
    )


def _index_file(folder: Path) -> Path:
    """Where an index is written: next to the shards, or in the user's cache where that is impossible."""
    try:
        check_writable(folder / INDEX_FILE)
        return folder / INDEX_FILE
    except OSError as error:
        try:
            file = _in_cache(folder)
        except RuntimeError:
            raise DataError(f"{folder}: the index cannot be written ({error.strerror})") from None
        file.parent.mkdir(parents=True, exist_ok=True)
        return file


def _in_cache(folder: Path) -> Path:
    return user_cache() / "shards" / f"{digest(os.fsencode(os.path.realpath(folder)).hex())}.npz"


def _make_index(folder: Path, names: Sequence[str], file: Path, progress: Progress) -> Index:
    """Index tar files, unless another worker has done so meanwhile."""
    what = f"the tar files in {folder} to be indexed, by this worker or another"
    wait = Wait(what, installed_stop_request(), longest=SECONDS_TO_INDEX)
    with taking_turns(file.parent / f".{file.name}.lock", wait.check):
        index = read_index(file)
        if index is None or not _is_of(index, folder, names):
            index = index_tars(folder, names, read_classes(folder), progress)
            write_index(file, index)
        return index
