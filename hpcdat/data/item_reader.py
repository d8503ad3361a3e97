"""Images as they are stored, for loaders that decode or resize them themselves; items in processes.

Items are not read in threads of the trainer: a user's data set need not support threads, and it may draw from
the global random generators, which the model uses, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpcdat.config.sections import Data
from hpcdat.data.corrupt_images import complaint_about
from hpcdat.data.image_file import Contents, Unusable, as_pnm, decode
from hpcdat.data.images import Images
from hpcdat.data.reading_processes import ReadingProcesses
from hpcdat.data.sampler import Indices

Stored = tuple[NDArray[np.uint8], int, int]
"""An encoded file (bytes,) or pixels (H, W, C), with height and width."""


class Place(NamedTuple):
    """What is to be read of a list of images.

    Attributes:
        image: its position in the list.
        seed: of random numbers that a data set itself draws.
        with_pillow: decode it with Pillow, also where another decoder reads the format.
    """

    image: int
    seed: int
    with_pillow: bool = False


Form = Callable[[Images, int, Place], Stored | str]
"""Reads one image with so many channels, or says why it cannot be read."""


def as_file(images: Images, channels: int, place: Place) -> Stored | str:
    """An image in a form that DALI decodes as Pillow does."""
    try:
        stored = images.stored(place.image, channels, place.seed)
        return in_form_of_file(stored, channels, with_pillow=place.with_pillow)
    except Unusable as reason:
        return complaint_about(images.files[place.image], reason)


def in_form_of_file(stored: Contents | NDArray[np.uint8], channels: int, *, with_pillow: bool) -> Stored:
    """An image in a form that DALI decodes as Pillow does.

    Args:
        stored: encoded, or as pixels (H, W, C).
        channels: of the pixels.
        with_pillow: decode it here, also where DALI reads the format.

    Raises:
        Unusable: it is damaged.
    """
    if isinstance(stored, Contents):
        # DALI's grey is the luma of JPEG, and that of colour PNG is rounded differently.
        if stored.plain in (1, channels) and not with_pillow:
            return np.frombuffer(stored.encoded, np.uint8), stored.height, stored.width
        stored = decode(stored, channels)
    return as_pnm(stored), stored.shape[0], stored.shape[1]


def as_pixels(images: Images, channels: int, place: Place) -> Stored | str:
    """The pixels of an image, (H, W, C)."""
    try:
        pixels = images.decoded(place.image, channels, place.seed)
    except Unusable as reason:
        return complaint_about(images.files[place.image], reason)
    return pixels, pixels.shape[0], pixels.shape[1]


class ItemReader:
    """Reads items of a data set ahead, in ``threads`` processes.

    Args:
        images: what is read.
        settings: the job's ``data`` section.
        form: :func:`as_file` or :func:`as_pixels`.
    """

    def __init__(self, images: Images, settings: Data, form: Form) -> None:
        read = partial(_read_batch, form, images, settings.channels)
        self._processes = ReadingProcesses(read, settings.threads, None, loader=settings.loader)

    def read(
        self, batches: Sequence[Indices], seed: int, with_pillow: set[int] | None = None
    ) -> Iterator[list[Stored | str]]:
        """Yield what is stored for the images of each batch, or why it cannot be read.

        Args:
            batches: positions in the list of images.
            seed: of the epoch.
            with_pillow: positions of those that Pillow is to decode.

        Raises:
            DataError: an item is of the wrong kind, or has another label.
            InputError, WorkerError, Stopped: as :meth:`ReadingProcesses.read`.
        """
        decoded = with_pillow or set()
        places = ([Place(i, seed, i in decoded) for i in batch.tolist()] for batch in batches if len(batch))
        read = self._processes.read(places, max(map(len, batches), default=0))
        for batch in batches:
            yield _unpacked(*next(read)) if len(batch) else []

    def close(self) -> None:
        """End the processes."""
        self._processes.close()


def _read_batch(
    form: Form, images: Images, channels: int, places: Sequence[Place]
) -> tuple[Tensor, list[tuple[tuple[int, ...], int, int] | str]]:
    """Images of any sizes in one tensor of bytes, which takes a single piece of shared memory, and shapes."""
    read = [form(images, channels, place) for place in places]
    arrays = [one[0].ravel() for one in read if not isinstance(one, str)]
    shapes = [one if isinstance(one, str) else (one[0].shape, one[1], one[2]) for one in read]
    return torch.from_numpy(np.concatenate([np.empty(0, np.uint8), *arrays])), shapes


def _unpacked(
    together: Tensor, shapes: Sequence[tuple[tuple[int, ...], int, int] | str]
) -> list[Stored | str]:
    sizes = [0 if isinstance(shape, str) else int(np.prod(shape[0])) for shape in shapes]
    ends, array = list(accumulate(sizes, initial=0)), together.numpy()
    return [
        shape if isinstance(shape, str) else (array[start:end].reshape(shape[0]), shape[1], shape[2])
        for shape, (start, end) in zip(shapes, pairwise(ends), strict=True)
    ]
