"""Input normalisation as a layer, so that attacks and their balls are defined on pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalization(nn.Module):
    """(x - mean) / std for each channel.

    Args:
        mean, std: one value per channel, [0, 1] units.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(list(mean)).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(list(std)).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise images (N, C, H, W), float in [0, 1]."""
        return (x - self.mean) / self.std
