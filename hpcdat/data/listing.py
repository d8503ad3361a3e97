"""Find a job's images with all workers: one lists the files, and sends the list to the others."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from hpcdat.config.sections import Data
from hpcdat.data.encoded_images import Files, SendableImages
from hpcdat.data.images import DataError, Images
from hpcdat.data.shards import Shards
from hpcdat.distributed.communicator import Communicator
from hpcdat.distributed.uneven_work import results_in_order, run_unevenly
from hpcdat.distributed.waiting import announcing

KINDS: dict[str, type[SendableImages]] = {kind.kind: kind for kind in (Files, Shards)}
"""Lists that can be sent."""

Found = tuple[Images, ...]


def find_together(find: Callable[..., Found], settings: Data, workers: Communicator) -> Found:
    """Lists of images, the same on all workers.

    A file system that many nodes share would otherwise be asked for the same million names by every worker.
    Digits, CIFAR and data sets of one's own are read by each worker.

    Args:
        find: finds them, given whether to be ``quiet``.
        settings: the job's ``data`` section.
        workers: all of them call this together.

    Raises:
        InputError, WorkerError: on all workers; as ``find``, or a worker has no ``data.root``.
    """
    what = "find the images"
    if workers.size == 1 or not settings.has_folders:
        return workers.on_all_ranks(what, lambda: find(quiet=not workers.is_rank0))

    def find_on_worker0(poll: Callable[[], None]) -> list[Images]:
        if not workers.is_rank0:
            return []
        # It may take long: tar files of other programs are read from end to end to index them.
        thread = ThreadPoolExecutor(1)
        try:
            with announcing(what):
                (lists,) = results_in_order([thread.submit(find, quiet=False)], poll)
            return list(lists)
        finally:
            thread.shutdown(wait=False)

    found = run_unevenly(workers, what, find_on_worker0, None)
    outlines: list[Any] = workers.on_rank0(what, lambda: [list(_Outline.of(images)) for images in found])
    workers.on_all_ranks(what, lambda: _check_root(settings))
    if not workers.is_rank0:
        found = [_Outline(*one).empty() for one in outlines]
    return tuple(_broadcast(images, workers, f"images.{n}") for n, images in enumerate(found))


class _Outline(NamedTuple):
    """What the others must know to receive a list of images.

    Attributes:
        kind: of the list.
        shapes: name, dtype and length of each of its arrays.
        images: their number.
        classes: their names.
    """

    kind: str
    shapes: list[tuple[str, str, int]]
    images: int
    classes: list[str]

    @classmethod
    def of(cls, images: Images) -> _Outline:
        assert isinstance(images.files, SendableImages)
        arrays = images.files.arrays()
        shapes = [(name, array.dtype.str, len(array)) for name, array in arrays.items()]
        return cls(images.files.kind, shapes, len(images), images.classes)

    def empty(self) -> Images:
        """A list of this size, to be filled in place."""
        arrays = {name: np.zeros(length, dtype) for name, dtype, length in self.shapes}
        return Images(KINDS[self.kind].from_arrays(arrays), np.zeros(self.images, np.int64), self.classes)


def _broadcast(images: Images, workers: Communicator, name: str) -> Images:
    """Worker 0's images."""
    assert isinstance(images.files, SendableImages)
    arrays: list[NDArray[Any]] = [images.labels, *images.files.arrays().values()]
    # Horovod knows no unsigned integers of 16 or 32 bits. The arrays of those who receive are their own.
    parts = [array.view(np.uint8) for array in arrays if array.nbytes]
    # torch warns of memory that may not be written; the list of worker 0 may be of this kind.
    writable = [part if part.flags.writeable else part.copy() for part in parts]
    workers.broadcast([torch.from_numpy(part) for part in writable], name)
    return images


def _check_root(settings: Data) -> None:
    """Notice a node without the images before it fails to read the first."""
    if settings.root is not None and not settings.root.is_dir():
        raise DataError(
            f"{settings.root}: there is no such folder on this node, although worker 0 has found images "
            "there; it has to be in a file system that all nodes share, or to be copied to each"
        )
