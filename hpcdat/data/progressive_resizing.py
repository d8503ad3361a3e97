"""Smaller training images in earlier epochs, which need less computation (progressive resizing)."""

from __future__ import annotations

from torch import Tensor
from torchvision.transforms.v2 import functional


def resized(images: Tensor, size: int) -> Tensor:
    """Images of another size, by bilinear interpolation with antialiasing.

    Args:
        images: (N, C, H, H), float32 in [0, 1]; N may be 0.
        size: height and width of the result, pixels.

    Returns:
        (N, C, size, size), on the same device, in [0, 1]; the images themselves if they have that size.
    """
    if images.shape[-1] == size:
        return images
    # Weights that add up to 1 but for rounding may leave the range, which attacks refuse.
    smaller: Tensor = functional.resize(images, [size, size], antialias=True).clamp_(0, 1)
    return smaller
