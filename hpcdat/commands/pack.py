"""Pack folders of images into shards, on every worker."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from hpcdat.config.sections import Data
from hpcdat.data.encoded_images import stamps_with_polls
from hpcdat.data.image_folder import list_folder
from hpcdat.data.images import Images
from hpcdat.data.listing import find_together
from hpcdat.data.packing import Part, Plan, pack_shard, read_part, shard_name, write_index_of
from hpcdat.data.read_ahead import Read, ReadAhead
from hpcdat.data.shard_folder import PACKING_FILE
from hpcdat.data.shard_index import INDEX_FILE, read_index
from hpcdat.distributed.communicator import Communicator
from hpcdat.distributed.stop_signals import StopRequest
from hpcdat.distributed.uneven_work import results_in_order, run_unevenly
from hpcdat.errors import InputError, WorkerError, first_few
from hpcdat.progress import Progress
from hpcdat.storage.atomic_files import write_text
from hpcdat.storage.folder_lock import locked

Corrupt = Literal["stop", "skip"]

IMAGES_AT_ONCE = 64
"""Images that are read together."""


@dataclass(frozen=True)
class Packed:
    """The shards of one split.

    Attributes:
        folder: that holds them.
        shards: number of shards.
        images: number of images in them.
        size: bytes of all shards.
        left_out: number of images that cannot be read.
    """

    folder: Path
    shards: int
    images: int
    size: int
    left_out: int


def pack(
    root: Path,
    out: Path,
    splits: Sequence[str],
    shard_bytes: int,
    corrupt: Corrupt,
    workers: Communicator,
    stop: StopRequest,
) -> list[Packed]:
    """Pack folders of images into shards; complete shards of an earlier call are kept.

    Args:
        root: holds the splits, each with one folder a class.
        out: the folder for the shards, with one folder a split.
        splits: paths of the splits below ``root``, the one with the classes first.
        shard_bytes: largest size of a shard.
        corrupt: ``stop`` at an image that cannot be read, or ``skip`` it.
        workers: all of them call this together; they divide the shards.
        stop: request to stop.

    Returns:
        What each split's shards hold.

    Raises:
        InputError: the images cannot be used, or ``out`` holds something else or has too little space.
        WorkerError: something failed on a worker.
        Stopped: a stop was requested; the same command resumes.
    """
    progress = Progress(shown=workers.is_rank0)
    workers.on_rank0("check the folders", lambda: check_folders(root, out, splits))
    with locked(out, workers):
        plans = _plans(root, splits, shard_bytes, workers, stop)
        folders = [out / split for split in splits]
        pending = workers.on_rank0("begin the shards", lambda: _begin(plans, folders, corrupt))
        packed = []
        for plan, folder, numbers in zip(plans, folders, pending, strict=True):
            if numbers:
                _pack_shards(plan, folder, numbers, corrupt, workers, stop, progress)

            def conclude(plan: Plan = plan, folder: Path = folder) -> list[int]:
                return _conclude(plan, folder)

            packed.append(Packed(folder, *workers.on_rank0("write the index", conclude)))
    return packed


def check_folders(root: Path, out: Path, splits: Sequence[str]) -> None:
    """Check the names of the splits and that a folder holds nothing but shards that this command has written.

    Raises:
        InputError: a name cannot be used, or the folder holds something else.
    """
    for split in splits:
        parts = Path(split).parts
        if not parts or Path(split).is_absolute() or ".." in parts or splits.count(split) > 1:
            raise InputError(f"--splits {','.join(splits)}: expected different paths below {root}")
        if out.resolve().is_relative_to((root / split).resolve()):
            raise InputError(f"{out}: lies in {root / split}, which is to be packed: choose another folder")
    if not out.exists():
        return
    if not out.is_dir():
        raise InputError(f"{out}: a file: choose a folder")
    own = {Path(split).parts[0] for split in splits} | {".lock"}
    others = [each for each in out.iterdir() if each.name not in own and not (each / PACKING_FILE).exists()]
    for split in splits:
        if (out / split).exists() and not (out / split / PACKING_FILE).exists():
            others += (out / split).iterdir()
    if others:
        found = first_few(sorted(str(each.relative_to(out)) for each in others), 3)
        raise InputError(f"{out}: holds what `hpcdat pack` has not written ({found}): choose another folder")


def _plans(
    root: Path, splits: Sequence[str], shard_bytes: int, workers: Communicator, stop: StopRequest
) -> list[Plan]:
    """The plans of all splits, the same on all workers; worker 0 lists the images and reads their sizes."""
    found = find_together(partial(_list, root, splits), Data(source="folder", root=root), workers)

    def read_sizes(poll: Callable[[], None]) -> list[NDArray[np.int64]]:
        return [
            _sizes(images, poll) if workers.is_rank0 else np.zeros(len(images), np.int64) for images in found
        ]

    sizes = run_unevenly(workers, "read the sizes of the images", read_sizes, stop)
    workers.broadcast([torch.from_numpy(of_split) for of_split in sizes], "sizes of images")
    return [
        Plan(images, root / split, of_split, shard_bytes)
        for images, split, of_split in zip(found, splits, sizes, strict=True)
    ]


def _list(root: Path, splits: Sequence[str], *, quiet: bool) -> tuple[Images, ...]:
    """The images of each split."""
    found: list[Images] = []
    for split in splits:
        listing = list_folder(root / split, found[0].classes if found else None)
        if listing.left_out and not quiet:
            print(f"hpcdat: {root / split}: left out: {listing.left_out}", file=sys.stderr, flush=True)
        found.append(listing.images)
    return tuple(found)


def _sizes(images: Images, poll: Callable[[], None]) -> NDArray[np.int64]:
    """The size of each file, bytes; 0 of one that cannot be read, which is reported when it is packed."""
    assert images.encoded is not None
    return stamps_with_polls(images.encoded, poll)[:, 0].clip(0)


def _begin(plans: Sequence[Plan], folders: Sequence[Path], corrupt: Corrupt) -> list[list[int]]:
    """Prepare the folders; return which shards of each are still to be written.

    Raises:
        InputError: a folder holds shards of something else, or there is too little space.
    """
    pending: list[list[int]] = []
    for plan, folder in zip(plans, folders, strict=True):
        if any("\n" in name for name in plan.images.classes):
            raise InputError(f"{plan.folder}: a class whose name has a line break: rename its folder")
        marker = folder / PACKING_FILE
        wanted = {"plan": plan.signature, "shards": len(plan.members), "images": len(plan.images)}
        if marker.exists():
            if json.loads(marker.read_text()) != wanted:
                raise InputError(
                    f"{folder}: holds shards of other images, or of another --shard-size: choose another "
                    "folder, or remove it"
                )
        else:
            folder.mkdir(parents=True, exist_ok=True)
            write_text(marker, json.dumps(wanted))
        # What a call that was killed has left.
        for file in folder.glob(f".{folder.name}-*"):
            file.unlink()
        if (folder / INDEX_FILE).exists():
            pending.append([])
        else:
            parts = [read_part(folder, number) for number in range(len(plan.members))]
            pending.append([number for number, part in enumerate(parts) if not _is_kept(part, corrupt)])
    needed = sum(
        plan.bytes_of(number) for plan, numbers in zip(plans, pending, strict=True) for number in numbers
    )
    free = shutil.disk_usage(folders[0]).free
    if needed > free:
        raise InputError(
            f"{folders[0].parent}: the shards take {needed / 1e9:.3g} GB, and {free / 1e9:.3g} GB are free"
        )
    return pending


def _is_kept(part: Part | None, corrupt: Corrupt) -> bool:
    """Whether a shard of an earlier call is complete; with ``stop``, one that lacks images is not."""
    return part is not None and (corrupt == "skip" or not len(part.left_out))


def _pack_shards(
    plan: Plan,
    folder: Path,
    numbers: Sequence[int],
    corrupt: Corrupt,
    workers: Communicator,
    stop: StopRequest,
    progress: Progress,
) -> None:
    """Write the shards of a split that are not there yet, an equal share on each worker."""
    own = numbers[workers.rank :: workers.size]
    done = len(plan.members) - len(numbers)
    kept = f"; {done:,} are there" if done else ""
    progress.say(f"{folder}: packing {len(numbers):,} shards{kept}")

    def work(poll: Callable[[], None]) -> None:
        files = plan.images.encoded
        assert files is not None
        batches = [
            plan.members[number][at : at + IMAGES_AT_ONCE]
            for number in own
            for at in range(0, len(plan.members[number]), IMAGES_AT_ONCE)
        ]
        progress.begin(f"packing images ({folder.name})", sum(map(len, batches)))
        read_ahead = ReadAhead()
        try:
            read = results_in_order(chain.from_iterable(read_ahead.read(files, batches)), poll)
            for number in own:
                of_shard = islice(read, len(plan.members[number]))
                counted = (_counted(one, progress) for one in of_shard)
                for complaint in pack_shard(plan, number, counted, folder, corrupt):
                    print(f"hpcdat: {complaint}; it is left out", file=sys.stderr, flush=True)
        finally:
            read_ahead.close()
            progress.end()

    run_unevenly(workers, "pack the images", work, stop)


def _counted(read: Read, progress: Progress) -> Read:
    progress.step()
    return read


def _conclude(plan: Plan, folder: Path) -> list[int]:
    """Write the index, unless it is there; numbers and bytes for :class:`Packed`."""
    index = read_index(folder / INDEX_FILE)
    if index is None:
        parts = [read_part(folder, number) for number in range(len(plan.members))]
        if missing := [shard_name(folder, number) for number, part in enumerate(parts) if part is None]:
            raise WorkerError(f"{folder}: not there, although written: {first_few(missing)}: call it again")
        index = write_index_of(plan, [part for part in parts if part is not None], folder)
    images = len(index.shards)
    return [len(index.bytes_of), images, int(index.bytes_of.sum()), len(plan.images) - images]
