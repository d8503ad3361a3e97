"""Pixels as every loader hands them over."""

from __future__ import annotations

import torch
from torch import Tensor

from hpcdat.job import Data


def to_pixels(image: Tensor, device: torch.device) -> Tensor:
    """Images (N, H, W, C), uint8, as (N, C, H, W), float32 in [0, 1], on the device."""
    return image.to(device, non_blocking=True).permute(0, 3, 1, 2).contiguous().float().div_(255)


def empty_batch(settings: Data, device: torch.device) -> tuple[Tensor, Tensor]:
    """No images and no labels, of the usual shape."""
    images = torch.empty(0, settings.channels, settings.image_size, settings.image_size, device=device)
    return images, torch.empty(0, dtype=torch.int64, device=device)
