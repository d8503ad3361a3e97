"""Copy the images that a node reads in every epoch to a disk of its own.

The workers of a node divide them. Each writes one file of copies and, when that is complete, an index: where
each copy begins, its size and checksum, and what the image was known by. A later run finds the copies, and
makes them again if an image has changed.
"""

from __future__ import annotations

import errno
import shutil
import zlib
from collections.abc import Callable, Generator, Iterable
from contextlib import closing, suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcdat.data.encoded_images import EncodedImages, stamps_with_polls
from hpcdat.data.image_file import Unusable
from hpcdat.data.images import DataError, Images
from hpcdat.data.read_ahead import Read, ReadAhead
from hpcdat.data.sampler import Indices
from hpcdat.data.shard_files import forget
from hpcdat.data.shard_index import read_arrays, write_arrays
from hpcdat.data.staged_images import BLOCK, Copies, Staged
from hpcdat.distributed.communicator import Communicator
from hpcdat.distributed.stop_signals import StopRequest
from hpcdat.distributed.uneven_work import results_in_order, run_unevenly
from hpcdat.errors import InputError
from hpcdat.progress import Progress
from hpcdat.storage.atomic_files import digest, digest_of_array
from hpcdat.storage.turn_lock import taking_turns

IMAGES_AT_ONCE = 64
"""Images that are read together."""
WHAT = "copy the images to data.stage"


def stage_images(
    images: Images,
    wanted: Indices,
    folder: Path,
    workers: Communicator,
    stop: StopRequest | None,
    progress: Progress,
) -> Images:
    """Copy images to a disk of this node, unless they are there; all workers call this together.

    Args:
        images: encoded.
        wanted: positions of those that this node's workers read, the same on all of them.
        folder: of :func:`stage_folder`.
        workers: those of a node copy an equal share each.
        stop: request to stop.
        progress: shows worker 0's share.

    Returns:
        The same images; those wanted are read from their copies. An image that cannot be read has none.

    Raises:
        InputError: there is too little space, or the folder cannot be written; names the worker's host.
        Stopped: a stop was requested; a later run continues.
    """
    origin = images.encoded
    assert origin is not None
    places = [wanted[rank :: workers.local_size] for rank in range(workers.local_size)]
    own = _Share(folder / f"copies-{workers.local_rank}", origin.take(places[workers.local_rank]))

    def bytes_to_copy(poll: Callable[[], None]) -> int:
        own.stamps = stamps_with_polls(own.images, poll)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"data.stage: {error.filename}: {error.strerror}") from None
        return 0 if own.is_complete() else own.size

    missing = run_unevenly(workers, WHAT, bytes_to_copy, stop)
    workers.on_all_ranks(WHAT, lambda: _check_space(folder, missing * workers.local_size))
    if missing:
        progress.say(f"copying {len(wanted):,} images a node to {folder.parent}")
    run_unevenly(workers, WHAT, lambda poll: own.make(poll, progress) if missing else None, stop)

    def find_all() -> Copies:
        copies = Copies.none_of(len(images))
        shares = [_Share(folder / f"copies-{rank}", origin.take(place)) for rank, place in enumerate(places)]
        for number, (share, place) in enumerate(zip(shares, places, strict=True), start=1):
            copies = copies.with_file(share.file, number, place, share.index())
        return copies

    copies = workers.on_all_ranks(WHAT, find_all)
    return replace(images, files=Staged(origin, copies))


def stage_folder(stage: Path, images: Images, wanted: Indices, workers: Communicator) -> Path:
    """The folder of a node's copies: one for every list of images and number of workers that divide it.

    Args:
        stage: the job's ``data.stage``.
        images: encoded.
        wanted: positions of those that this node's workers read.
        workers: of the run.
    """
    assert images.encoded is not None
    key = digest([images.encoded.name_hash(), digest_of_array(wanted), workers.local_size])
    return stage / f"hpcdat-{key}"


def remove_copies(folder: Path, workers: Communicator) -> None:
    """Remove the copies from every node; all workers call this together."""

    def remove() -> None:
        if workers.local_rank == 0:
            shutil.rmtree(folder, ignore_errors=True)

    workers.on_all_ranks("remove the copies in data.stage", remove)


class _Share:
    """The images that one worker copies.

    Args:
        path: of the copies, without a suffix.
        images: to copy.
    """

    def __init__(self, path: Path, images: EncodedImages) -> None:
        self.images = images
        self.file, self.index_file = path.with_suffix(".images"), path.with_suffix(".npz")
        self.stamps: NDArray[np.int64] = np.empty((0, 2), np.int64)

    @property
    def size(self) -> int:
        """Bytes of the images, each in whole blocks."""
        return int((np.ceil(self.stamps[:, 0].clip(0) / BLOCK) * BLOCK).sum())

    def is_complete(self) -> bool:
        """Whether the copies of an earlier run are there, and the images have not changed."""
        try:
            arrays = self.index()
        except DataError:
            return False
        return np.array_equal(arrays.get("stamps", []), self.stamps) and self._is_whole(arrays)

    def index(self) -> dict[str, NDArray[Any]]:
        """The index.

        Raises:
            DataError: there is none, or it is damaged.
        """
        arrays = read_arrays(self.index_file)
        if arrays is None:
            raise DataError(f"{self.index_file}: not there; the workers of a node have to share data.stage")
        return arrays

    def make(self, poll: Callable[[], None], progress: Progress) -> None:
        """Copy the images, unless another job on this node does so meanwhile.

        Raises:
            InputError: there is no space left.
            OSError: the file cannot be written.
        """
        with taking_turns(self.file.with_suffix(".lock"), poll):
            if not self.is_complete():
                self._write(poll, progress)

    def _write(self, poll: Callable[[], None], progress: Progress) -> None:
        # Never an index with other copies than it describes.
        self.index_file.unlink(missing_ok=True)
        temporary = self.file.with_suffix(".part")
        progress.begin("copying images", len(self.images))
        blocks: list[int] = []
        sizes: list[int] = []
        checksums: list[int] = []
        try:
            with temporary.open("wb") as file, closing(self._read(poll)) as read:
                for image in read:
                    copy = b"" if isinstance(image, Unusable) else image
                    blocks.append(file.tell() // BLOCK)
                    sizes.append(len(copy))
                    checksums.append(zlib.crc32(copy))
                    file.write(copy + bytes(-len(copy) % BLOCK))
                    progress.step()
            temporary.replace(self.file)
            forget(str(self.file))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise InputError(
                f"data.stage: {self.file.parent}: {error.strerror} after {sum(sizes) / 1e9:.3g} GB of "
                f"{self.size / 1e9:.3g}: make room, or choose another folder"
            ) from None
        finally:
            progress.end()
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        places = {"blocks": blocks, "sizes": sizes, "checksums": checksums}
        arrays = {name: np.array(values, dtype=np.uint32) for name, values in places.items()}
        write_arrays(self.index_file, arrays | {"stamps": self.stamps})

    def _read(self, poll: Callable[[], None]) -> Generator[Read, None, None]:
        """The images in order."""
        order = np.arange(len(self.images))
        batches = (order[at : at + IMAGES_AT_ONCE] for at in range(0, len(order), IMAGES_AT_ONCE))
        with closing(ReadAhead()) as reader:
            reading: Iterable[Any] = chain.from_iterable(reader.read(self.images, batches))
            yield from results_in_order(reading, poll)

    def _is_whole(self, arrays: dict[str, NDArray[Any]]) -> bool:
        """Whether the file is as long as its index says."""
        sizes = arrays["sizes"].astype(np.int64)
        with suppress(OSError):
            return self.file.stat().st_size == int((-(-sizes // BLOCK) * BLOCK).sum())
        return False


def _check_space(folder: Path, needed: int) -> None:
    """Notice before copying that a disk is too small.

    Raises:
        InputError: it is.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"data.stage: {folder.parent} has {free / 1e9:.3g} GB free, and the images of this node take "
            f"about {needed / 1e9:.3g} GB: make room (copies of earlier runs are in folders hpcdat-*), or "
            "choose another folder"
        )
