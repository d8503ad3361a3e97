"""From pixels to logits: normalisation, then a network in the precision and layout that a job asks for."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from hpcdat.models.normalization import Normalization

Precision = Literal["float32", "bfloat16"]


class PixelModel(nn.Sequential):
    """The normalisation layer and a network, as attacks and costs see them.

    Pixels, logits, weights and all gradients keep their type whatever the precision, so that the
    pixel arithmetic of an attack, the losses and the exchange are those of float32. Weights stay
    in their usual layout; their names do not depend on precision or layout.

    Args:
        normalization: layer 0.
        net: layer 1, from normalised images to logits.
        precision: ``bfloat16`` runs the network's convolutions and products with bfloat16
            factors (torch's autocast).
        channels_last: activations lie in memory pixel by pixel instead of channel by channel.
    """

    def __init__(
        self, normalization: Normalization, net: nn.Module, precision: Precision, channels_last: bool
    ) -> None:
        super().__init__(normalization, net)
        self.precision, self.channels_last = precision, channels_last

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, C, H, W) in [0, 1], never in bfloat16."""
        normalization, net = self
        normalized = normalization(x)
        if self.channels_last:
            normalized = normalized.contiguous(memory_format=torch.channels_last)
        reduced = self.precision == "bfloat16"
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=reduced):
            logits: Tensor = net(normalized)
        return logits.float() if reduced else logits
