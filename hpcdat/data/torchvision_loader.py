"""The alternative to DALI: Pillow's decoders and torchvision's transforms in processes of their own."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import v2

from hpcdat.config.sections import Data
from hpcdat.data.augmentation import POLICY_FILL, policy_seed, view_of
from hpcdat.data.corrupt_images import Unreadable
from hpcdat.data.encoded_images import EncodedImages
from hpcdat.data.images import Images
from hpcdat.data.item_reader import Place, as_pixels
from hpcdat.data.pixels import apply_view, empty_batch, to_pixels
from hpcdat.data.read_ahead import ReadAhead, decoded_or_complaint
from hpcdat.data.reading_processes import ReadingProcesses
from hpcdat.data.sampler import Indices


class TorchvisionLoader:
    """Reads with torchvision, in ``threads`` processes, which read all epochs.

    Args:
        images: what is read.
        settings: the job's ``data`` section.
        training: whether the training augmentation applies.
        device: where the images end up.
    """

    def __init__(self, images: Images, settings: Data, *, training: bool, device: torch.device) -> None:
        self.images = images
        self.settings = settings
        self.device = device
        self.unreadable = Unreadable(settings.corrupt)
        read = BatchReader(images if images.encoded is None else None, settings, training)
        image_bytes = settings.image_size**2 * settings.channels
        self._processes = ReadingProcesses(read, settings.threads, image_bytes)

    def close(self) -> None:
        """End the processes."""
        self._processes.close()

    def read(self, batches: list[Indices], seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images (N, C, H, W), float32 in [0, 1], and labels (N,) on the device.

        Raises:
            DataError: a file cannot be read or decoded, and the job does not say to skip it.
            InputError, WorkerError, Stopped: as :meth:`ReadingProcesses.read`.
        """
        labels = torch.from_numpy(self.images.labels)
        wanted = (self._wanted(indices, seed) for indices in batches if len(indices))
        decoded = self._processes.read(wanted, max(map(len, batches), default=0))
        for indices in batches:
            pixels, complaints = next(decoded) if len(indices) else (None, {})
            for index, complaint in complaints.items():
                self.unreadable.add(index, complaint)
            if pixels is None:
                yield empty_batch(self.settings, self.device)
                continue
            read = [int(i) for i in indices if int(i) not in complaints]
            yield to_pixels(pixels, self.device), labels[read].to(self.device, non_blocking=True)

    def _wanted(self, indices: Indices, seed: int) -> Wanted:
        encoded = self.images.encoded
        return Wanted(indices, seed, None if encoded is None else encoded.take(indices))


class Wanted(NamedTuple):
    """A batch to be read.

    Attributes:
        indices: positions of its images.
        seed: of the epoch.
        encoded: its images, if they are encoded; the processes hold no list of all of them.
    """

    indices: Indices
    seed: int
    encoded: EncodedImages | None


class BatchReader:
    """Reads batches in a process of its own.

    Args:
        images: pixels, or items of a data set; None for encoded images.
        settings: the job's ``data`` section.
        training: whether the training augmentation applies.
    """

    def __init__(self, images: Images | None, settings: Data, training: bool) -> None:
        self.images = images
        self.settings = settings
        self.training = training
        self.policy = None
        if training and settings.policy == "autoaugment":
            self.policy = v2.AutoAugment(
                v2.AutoAugmentPolicy.IMAGENET, v2.InterpolationMode.BILINEAR, fill=POLICY_FILL
            )

    def __call__(self, wanted: Wanted) -> tuple[Tensor | None, dict[int, str]]:
        """The pixels of a batch (N, H, W, C), uint8, or None, and a complaint for each unreadable image."""
        seen, complaints = [], {}
        for index, decoded in zip(wanted.indices.tolist(), self._decoded(wanted), strict=True):
            if isinstance(decoded, str):
                complaints[index] = decoded
            else:
                seen.append(self._seen(decoded, index, wanted.seed))
        return torch.stack(seen) if seen else None, complaints

    @cached_property
    def _read_ahead(self) -> ReadAhead:
        return ReadAhead()

    def _decoded(self, wanted: Wanted) -> Iterator[NDArray[np.uint8] | str]:
        """The pixels of each image (H, W, C), or why it cannot be read."""
        if wanted.encoded is None:
            assert self.images is not None
            for index in wanted.indices.tolist():
                read = as_pixels(self.images, self.settings.channels, Place(index, wanted.seed))
                yield read if isinstance(read, str) else read[0]
            return
        (reading,) = self._read_ahead.read(wanted.encoded, [np.arange(len(wanted.encoded))])
        for future, name in zip(reading, wanted.encoded, strict=True):
            yield decoded_or_complaint(future, self.settings.channels, name)

    def _seen(self, stored: NDArray[np.uint8], index: int, seed: int) -> Tensor:
        """An image as the model sees it, (H, W, C)."""
        pixels = torch.from_numpy(stored).permute(2, 0, 1)
        _, height, width = pixels.shape
        view = view_of(height, width, index, self.settings, training=self.training, seed=seed)
        seen = apply_view(pixels, view, self.settings.image_size)
        if self.policy is not None:
            # It draws from torch's global generator.
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(policy_seed(index, seed))
                seen = self.policy(seen)
        return seen.permute(1, 2, 0)
