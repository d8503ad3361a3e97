"""The images of a measurement, cut into numbered batches."""

from __future__ import annotations

from functools import cached_property

import torch

from hpcdat.config.sections import Data
from hpcdat.data import Loader, open_loader
from hpcdat.data.images import Images
from hpcdat.data.sampler import Indices, evaluation_batches


class ImageBatches:
    """A list of images, its batches, and the loader that reads them.

    The batches do not depend on the number of workers.

    Args:
        images: all images; batches hold positions in this list, from 0.
        data: the job's ``data`` section.
        batch_size: images in a batch, >= 1; the last one may be shorter.
        device: on which the images are returned.
        every: take only batches 0, ``every``, 2 ``every``, ...
    """

    def __init__(
        self, images: Images, data: Data, batch_size: int, device: torch.device, *, every: int = 1
    ) -> None:
        self.images, self.data, self.batch_size, self.device = images, data, batch_size, device
        self.batches: dict[int, Indices] = {
            number: indices
            for number, indices in enumerate(evaluation_batches(len(images), batch_size))
            if number % every == 0
        }

    def part(self, indices: Indices) -> ImageBatches:
        """The images at these positions, in batches of the same size."""
        return ImageBatches(self.images.subset(indices), self.data, self.batch_size, self.device)

    def close(self) -> None:
        """Close the loader, if it was opened."""
        if "loader" in self.__dict__:
            self.loader.close()

    @cached_property
    def loader(self) -> Loader:
        """The loader, opened on first use.

        Raises:
            DataError: images cannot be read, or the loader does not support them.
        """
        return open_loader(
            self.images, self.data, training=False, batch_size=self.batch_size, device=self.device
        )
