"""Images in memory as the batches of a measurement."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor

from hpcdat.config.sections import Data
from hpcdat.data import Loader
from hpcdat.data.images import Images
from hpcdat.data.pixels import from_bytes
from hpcdat.data.sampler import Indices
from hpcdat.errors import InputError
from hpcdat.evaluation.image_batches import ImageBatches


class TensorBatches(ImageBatches):
    """Images that are tensors.

    Args:
        x: images (N, C, H, W), floating point in [0, 1], or uint8 in [0, 255].
        y: labels (N,), of an integer type, in [0, classes).
        classes: number of classes.
        batch_size: images in a batch, >= 1.
        device: on which the images are returned.
        every: as for :class:`ImageBatches`.

    Raises:
        InputError: the tensors do not fit together, or have other types or values.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        classes: int,
        batch_size: int,
        device: torch.device,
        *,
        every: int = 1,
    ) -> None:
        check_images(x)
        check_labels(y, len(x), classes)
        self.x, self.y, self.classes = x, y, classes
        names = [str(number) for number in range(classes)]
        images = Images([f"image {i}" for i in range(len(x))], y.cpu().numpy(), names)
        data = Data(source="digits", channels=3 if x.shape[1] == 3 else 1, image_size=min(x.shape[2:]))
        super().__init__(images, data, batch_size, device, every=every)

    def part(self, indices: Indices) -> TensorBatches:
        """The images at these positions, in batches of the same size."""
        at = torch.from_numpy(indices).to(self.x.device)
        return TensorBatches(
            self.x[at], self.y[at.to(self.y.device)], self.classes, self.batch_size, self.device
        )

    @cached_property
    def loader(self) -> Loader:
        """Reads from the tensors."""
        return _TensorLoader(self.x, self.y, self.device)


class _TensorLoader:
    """A :class:`~hpcdat.data.Loader` of tensors."""

    def __init__(self, x: Tensor, y: Tensor, device: torch.device) -> None:
        self.x, self.y, self.device = x, y, device

    def read(self, batches: list[Indices], seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        for indices in batches:
            at = torch.from_numpy(indices)
            # To the CPU a copy has to be complete before it is read.
            non_blocking = self.device.type == "cuda"
            x, y = (
                t[at.to(t.device, non_blocking=True)].to(self.device, non_blocking=non_blocking)
                for t in (self.x, self.y)
            )
            yield (x if x.is_floating_point() else from_bytes(x)), y.to(torch.int64)

    def close(self) -> None:
        """Do nothing: the tensors are the caller's."""


def check_images(x: Tensor) -> None:
    """Check that a tensor holds images.

    Raises:
        InputError: see :class:`TensorBatches`.
    """
    if x.dim() != 4 or not (x.is_floating_point() or x.dtype == torch.uint8):
        raise InputError(
            f"images: expected (N, C, H, W), floating point in [0, 1] or uint8, not {x.dtype} of shape "
            f"{tuple(x.shape)}"
        )
    if not len(x):
        raise InputError("images: there are none")


def check_labels(y: Tensor, count: int, classes: int) -> None:
    """Check that a tensor holds the labels of so many images.

    Raises:
        InputError: see :class:`TensorBatches`.
    """
    if y.shape != (count,) or y.is_floating_point() or y.dtype == torch.bool:
        raise InputError(
            f"labels: expected {count} integers, one for each image, not {y.dtype} of shape {tuple(y.shape)}"
        )
    if int(y.min()) < 0 or int(y.max()) >= classes:
        raise InputError(
            f"labels: expected 0 to {classes - 1}, for the {classes} logits of the model; found "
            f"{int(y.min())} to {int(y.max())}"
        )
