"""The alternative to DALI: Pillow's decoders and torchvision's transforms in processes of their own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from hpcdat.config.sections import Data
from hpcdat.data.augmentation import POLICY_FILL, policy_seed, view_of
from hpcdat.data.corrupt_images import Unreadable, complaint_about
from hpcdat.data.image_file import Unusable
from hpcdat.data.images import Images
from hpcdat.data.pixels import apply_view, empty_batch, to_pixels
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
        read = partial(_read_batch, _Decoded(images, settings, training))
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
        labels = torch.tensor(self.images.labels)
        places = [[(int(i), seed) for i in indices] for indices in batches if len(indices)]
        decoded = self._processes.read(places)
        for indices in batches:
            pixels, complaints = next(decoded) if len(indices) else (None, {})
            for index, complaint in complaints.items():
                self.unreadable.add(index, complaint)
            if pixels is None:
                yield empty_batch(self.settings, self.device)
                continue
            read = [int(i) for i in indices if int(i) not in complaints]
            yield to_pixels(pixels, self.device), labels[read].to(self.device)


def _read_batch(images: _Decoded, places: Sequence[tuple[int, int]]) -> tuple[Tensor | None, dict[int, str]]:
    return _stack([images[place] for place in places])


def _stack(images: list[tuple[int, Tensor | str]]) -> tuple[Tensor | None, dict[int, str]]:
    """One batch (N, H, W, C) of those that were read, or None, and an error message for each other one."""
    pixels = [image for _, image in images if isinstance(image, Tensor)]
    complaints = {index: image for index, image in images if isinstance(image, str)}
    return torch.stack(pixels) if pixels else None, complaints


class _Decoded(Dataset[tuple[int, Tensor | str]]):
    """From (position, seed) to position and uint8 pixels (H, W, C), or why the file cannot be read."""

    def __init__(self, images: Images, settings: Data, training: bool) -> None:
        self.images = images
        self.settings = settings
        self.training = training
        self.policy = None
        if training and settings.policy == "autoaugment":
            self.policy = v2.AutoAugment(
                v2.AutoAugmentPolicy.IMAGENET, v2.InterpolationMode.BILINEAR, fill=POLICY_FILL
            )

    def __getitem__(self, place: tuple[int, int]) -> tuple[int, Tensor | str]:
        index, seed = place
        try:
            stored = self.images.decoded(index, self.settings.channels, seed)
        except Unusable as reason:
            return index, complaint_about(self.images.files[index], reason)
        pixels = torch.from_numpy(stored).permute(2, 0, 1)
        _, height, width = pixels.shape
        view = view_of(height, width, index, self.settings, training=self.training, seed=seed)
        seen = apply_view(pixels, view, self.settings.image_size)
        if self.policy is not None:
            # It draws from torch's global generator.
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(policy_seed(index, seed))
                seen = self.policy(seen)
        return index, seen.permute(1, 2, 0)
