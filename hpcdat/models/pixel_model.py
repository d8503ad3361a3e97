"""From pixels to logits: normalisation, then a model in the precision and layout that a job sets."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from hpcdat.models.normalization import Normalization

Precision = Literal["float32", "bfloat16"]


class PixelModel(nn.Sequential):
    """The normalisation layer and a model of normalised images.

    Pixels, logits, weights and all gradients keep their dtype in any precision, so attacks, losses and the
    exchange compute in float32. Layout and names of the weights do not depend on precision or
    ``channels_last``.

    Args:
        normalization: layer 0.
        model: layer 1, from normalised images to logits.
        precision: ``bfloat16`` runs convolutions and matrix products of the model in bfloat16 (torch's
            autocast).
        channels_last: memory format of the activations.
    """

    def __init__(
        self, normalization: Normalization, model: nn.Module, precision: Precision, channels_last: bool
    ) -> None:
        super().__init__(normalization, model)
        self.precision, self.channels_last = precision, channels_last

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes), never in bfloat16, of images (N, C, H, W) in [0, 1]."""
        normalization, model = self
        normalized = normalization(x)
        if self.channels_last:
            normalized = normalized.contiguous(memory_format=torch.channels_last)
        reduced = self.precision == "bfloat16"
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=reduced):
            logits: Tensor = model(normalized)
        return logits.float() if reduced else logits
