"""Batches of one image, which some models cannot be trained on.

In training, batch norm needs more than one value for each channel. A model whose last feature maps have one
pixel, such as a ResNet-50 of images of 32x32, gets a single one from a single image.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from hpcdat.attacks.pgd import attacked
from hpcdat.config.sections import Data
from hpcdat.errors import InputError

TEXT_OF_TORCH = "Expected more than 1 value per channel"
"""Text by which to recognise the error of torch's batch norm, a plain ValueError."""


@contextmanager
def reported(data: Data) -> Iterator[None]:
    """Turn batch norm's error about a single image into one that says what to change.

    Args:
        data: the job's section.

    Raises:
        InputError: a batch of one image was computed in training; replaces torch's error.
    """
    try:
        yield
    except ValueError as error:
        if TEXT_OF_TORCH not in str(error):
            raise
        size = data.training_sizes[0]
        larger = "data.progressive_resizing" if data.progressive_resizing else "data.image_size"
        raise InputError(
            f"a worker's batch of one image cannot pass this model's batch norm in training, as images of "
            f"{size}x{size} leave one value a channel: set batch_size to 2 or more, "
            f"data.last_batch to drop, or larger images ({larger})"
        ) from None


def check_batches(sizes: set[int], model: nn.Module, data: Data, device: torch.device) -> None:
    """Check before training that the model can be trained on each of its batches.

    Args:
        sizes: images in the batches of this worker, noisy copies counted.
        model: on the device; it is not changed.
        data: the job's section.
        device: of the model.

    Raises:
        InputError: a batch has one image, which is not enough for this model.
    """
    if 1 not in sizes:
        return
    size = data.training_sizes[0]
    image = torch.zeros(1, data.channels, size, size, device=device)
    with reported(data), attacked(model, "train"), torch.no_grad():
        model(image)
