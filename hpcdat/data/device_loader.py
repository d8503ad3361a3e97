"""Images that stay on the device: moved there once and read there batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional

from hpcdat.config.sections import Data
from hpcdat.data.augmentation import PADDING, View, views_of
from hpcdat.data.corrupt_images import Unreadable
from hpcdat.data.encoded_images import EncodedImages
from hpcdat.data.images import DataError, Images
from hpcdat.data.item_reader import ItemReader, as_pixels
from hpcdat.data.pixels import empty_batch, to_pixels
from hpcdat.data.read_ahead import ReadAhead, decoded_or_complaint
from hpcdat.data.sampler import Indices, evaluation_batches

ITEMS_AT_ONCE = 64
"""Items that a process reads before it sends them."""


class DeviceLoader:
    """Holds all images in device memory as uint8, padded with zeros.

    They are resized once; a batch is shifted and flipped by a single indexing of its pixels. The positions
    for a whole epoch are copied to the device at once, so that no batch waits for the CPU.

    Args:
        images: of one size; those in files are decoded here, in ``threads`` threads, and items of data sets
            read once, in as many processes.
        settings: the job's ``data`` section, its augmentation ``none`` or ``pad-crop``.
        training: whether the training augmentation applies.
        device: where the images stay.

    Raises:
        DataError: images of several sizes, or one that cannot be read, and the job does not say to skip it.
    """

    def __init__(self, images: Images, settings: Data, *, training: bool, device: torch.device) -> None:
        self.settings, self.training, self.device = settings, training, device
        self.unreadable = Unreadable(settings.corrupt)
        self._labels = torch.from_numpy(images.labels).to(device)
        stored = torch.from_numpy(self._stored(images)).permute(0, 3, 1, 2)
        self._height, self._width = stored.shape[2:]
        view = self._views(np.arange(1), 0)
        size = [int(np.ravel(sides)[0]) for sides in (view.rows, view.columns)]
        resized = functional.resize(stored, size, antialias=True)
        padded = torch.nn.functional.pad(resized, [PADDING] * 4)
        self._pixels = padded.permute(0, 2, 3, 1).contiguous().to(device)

    def read(self, batches: list[Indices], seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images (N, C, H, W), float32 in [0, 1], and labels (N,) on the device."""
        batches = [self.unreadable.without(indices) for indices in batches]
        order = np.concatenate([*batches, np.empty(0, np.int64)])
        view = self._views(order, seed)
        corners = np.stack([order, view.window_top + PADDING, view.window_left + PADDING, view.flip])
        places = torch.from_numpy(corners).to(self.device, non_blocking=True)
        for where in places.split([len(i) for i in batches], dim=1):
            if not where.shape[1]:
                yield empty_batch(self.settings, self.device)
                continue
            yield self._cut(*where), self._labels[where[0]]

    def close(self) -> None:
        """Do nothing: the images are in memory as long as the loader."""

    def _cut(self, index: Tensor, top: Tensor, left: Tensor, flip: Tensor) -> Tensor:
        """The windows of the images at these positions, mirrored where ``flip`` is 1."""
        size = self.settings.image_size
        place = torch.arange(size, device=self.device)
        rows = top[:, None] + place
        columns = left[:, None] + torch.where(flip[:, None] > 0, size - 1 - place, place)
        return to_pixels(self._pixels[index[:, None, None], rows[:, :, None], columns[:, None]], self.device)

    def _views(self, index: Indices, seed: int) -> View:
        height, width = np.full_like(index, self._height), np.full_like(index, self._width)
        return views_of(height, width, index, self.settings, training=self.training, seed=seed)

    def _stored(self, images: Images) -> np.ndarray:
        """The images as they are stored: (N, H, W, C), uint8; zeros in place of one that cannot be read."""
        if images.pixels is not None:
            return images.pixels

        decoded = self._read(images)
        first: int | None = None
        shape: tuple[int, ...] = ()
        for number, image in enumerate(decoded):
            if isinstance(image, str):
                self.unreadable.add(number, image)
                continue
            if first is None:
                first, shape = number, image.shape
            if image.shape != shape:
                (h, w, _), (h0, w0, _) = image.shape, shape
                raise DataError(
                    f"data.loader: device needs images of one size: {images.files[first]} has {h0} x {w0} "
                    f"pixels, {images.files[number]} {h} x {w}; take dali or torchvision"
                )
        if first is None:
            raise DataError(f"{images.files[0]}: none of the {len(images)} images can be read")
        nothing = np.zeros_like(decoded[first])
        return np.stack([nothing if isinstance(image, str) else image for image in decoded])

    def _read(self, images: Images) -> list[NDArray[np.uint8] | str]:
        """The pixels of all images, or why they cannot be read."""
        if images.encoded is not None:
            return self._read_encoded(images.encoded)
        with closing(ItemReader(images, self.settings, as_pixels)) as reader:
            batches = evaluation_batches(len(images), ITEMS_AT_ONCE)
            read = [one for batch in reader.read(batches, seed=0) for one in batch]
            return [one if isinstance(one, str) else one[0] for one in read]

    def _read_encoded(self, encoded: EncodedImages) -> list[NDArray[np.uint8] | str]:
        batches = evaluation_batches(len(encoded), ITEMS_AT_ONCE)
        found: list[NDArray[np.uint8] | str] = []
        with closing(ReadAhead()) as read_ahead, ThreadPoolExecutor(self.settings.threads) as threads:
            for batch, reading in zip(batches, read_ahead.read(encoded, batches), strict=True):
                names, channels = encoded.take(batch), [self.settings.channels] * len(batch)
                found += threads.map(decoded_or_complaint, reading, channels, names)
        return found
