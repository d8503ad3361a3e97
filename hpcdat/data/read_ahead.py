"""Read encoded images ahead, many at once, so that the latency of a file system does not add up."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from hpcdat.data.corrupt_images import complaint_about
from hpcdat.data.encoded_images import READERS, EncodedImages
from hpcdat.data.image_file import Contents, Unusable, decode, inspect
from hpcdat.data.sampler import Indices

Read = bytes | Unusable
"""An encoded image, or why it cannot be read."""

BYTES_AHEAD = 128 * 2**20
"""Bytes that are read ahead, or more if one batch has more: the next one is always read."""
BATCHES_AHEAD = 4
"""Batches that are read ahead at most; small images would otherwise be read thousands at once."""


class ReadAhead:
    """Threads that read encoded images in the order of their batches, ahead of what decodes them."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(READERS, thread_name_prefix="read-ahead")
        self._images = self._bytes = 0

    def read(self, images: EncodedImages, batches: Iterable[Indices]) -> Iterator[list[Future[Read]]]:
        """Yield for each batch what is being read of it.

        Memory is bounded: while a batch is at hand, up to ``BATCHES_AHEAD`` are read, and no more than one of
        them beyond ``BYTES_AHEAD``, in which images that are not there yet count with the mean size.

        Args:
            images: what is read.
            batches: positions in ``images``.
        """
        left, ahead = iter(batches), deque[list[Future[Read]]]()
        try:
            while True:
                while self._may_begin(ahead) and (batch := next(left, None)) is not None:
                    ahead.append(
                        [self._threads.submit(self._read, images, index) for index in batch.tolist()]
                    )
                if not ahead:
                    return
                yield ahead.popleft()
        finally:
            for reading in ahead:
                for future in reading:
                    future.cancel()

    def close(self) -> None:
        """End the threads; one that waits for a file system is not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _may_begin(self, ahead: deque[list[Future[Read]]]) -> bool:
        """Whether another batch is read: the one that is needed next and the one after it always are."""
        if len(ahead) < 2:
            return True
        mean = self._bytes / self._images if self._images else 0
        return len(ahead) <= BATCHES_AHEAD and mean * sum(map(len, ahead)) < BYTES_AHEAD

    def _read(self, images: EncodedImages, index: int) -> Read:
        try:
            read = images.read(index)
        except Unusable as reason:
            return reason
        # Approximate: several threads add at once.
        self._images += 1
        self._bytes += len(read)
        return read


def contents_of(read: Read) -> Contents:
    """What an image that was read holds.

    Raises:
        Unusable: it could not be read, or as :func:`inspect`.
    """
    if isinstance(read, Unusable):
        raise read
    return inspect(read)


def decoded_or_complaint(reading: Future[Read], channels: int, name: str) -> NDArray[np.uint8] | str:
    """The pixels of an image as soon as it is read, (H, W, channels), or why it is unusable."""
    try:
        return decode(contents_of(reading.result()), channels)
    except Unusable as reason:
        return complaint_about(name, reason)
