"""From decoded pixels to batches, the same for every loader."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from hpcdat.config.sections import Data
from hpcdat.data.augmentation import View


def apply_view(pixels: Tensor, view: View, size: int) -> Tensor:
    """The view of an image.

    Args:
        pixels: (C, H, W), uint8.
        view: what is seen of it.
        size: height and width of the result.

    Returns:
        (C, size, size), uint8.
    """
    region = functional.crop(pixels, view.top, view.left, view.height, view.width)
    resized = functional.resize(region, [view.rows, view.columns], antialias=True)
    seen = functional.crop(resized, view.window_top, view.window_left, size, size)
    shown: Tensor = functional.horizontal_flip(seen) if view.flip else seen
    return shown


def to_pixels(image: Tensor, device: torch.device) -> Tensor:
    """Images (N, H, W, C), uint8, as (N, C, H, W), float32 in [0, 1], on the device."""
    return from_bytes(image.to(device, non_blocking=True).permute(0, 3, 1, 2).contiguous())


def from_bytes(image: Tensor) -> Tensor:
    """uint8 in [0, 255] as float32 in [0, 1], of the same shape; the same bits on every device."""
    # By a tensor: CUDA multiplies by the reciprocal of a number, which rounds differently.
    return image.float().div_(torch.full((), 255.0, device=image.device))


def empty_batch(settings: Data, device: torch.device) -> tuple[Tensor, Tensor]:
    """No images and no labels, of the usual shape."""
    images = torch.empty(0, settings.channels, settings.image_size, settings.image_size, device=device)
    return images, torch.empty(0, dtype=torch.int64, device=device)
