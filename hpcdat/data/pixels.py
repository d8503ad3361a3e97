"""Pixels as every loader hands them over."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hpcdat.job import Data

EVALUATION_MARGIN = 256 / 224
"""Shorter side over crop when evaluating a net trained with random crops (256 for 224)."""


def shorter_side(settings: Data) -> int:
    """Length that the shorter side is resized to before the centre is cut out, pixels."""
    return round(settings.image_size * (EVALUATION_MARGIN if settings.augmentation == "crop-flip" else 1))


# The geometry of resize and centre crop, for plain integers and for DALI's nodes alike.


def resized(side: Any, shortest: Any, shorter: int) -> Any:
    """Length of a side when the shortest one becomes ``shorter``, rounded down."""
    return side * shorter // shortest


def centred(side: Any, size: int) -> Any:
    """Where a crop of ``size`` pixels begins in a side, rounded down."""
    return (side - size) // 2


def to_pixels(image: Tensor, device: torch.device) -> Tensor:
    """Images (N, H, W, C), uint8, as (N, C, H, W), float32 in [0, 1], on the device."""
    return image.to(device, non_blocking=True).permute(0, 3, 1, 2).contiguous().float().div_(255)


def empty_batch(settings: Data, device: torch.device) -> tuple[Tensor, Tensor]:
    """No images and no labels, of the usual shape."""
    images = torch.empty(0, settings.channels, settings.image_size, settings.image_size, device=device)
    return images, torch.empty(0, dtype=torch.int64, device=device)
