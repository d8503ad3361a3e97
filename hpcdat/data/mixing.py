"""Mixed training batches: mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019)."""

from __future__ import annotations

from typing import Any

import torch
from torchvision.transforms import v2

from hpcdat.config.sections import Data
from hpcdat.models.losses import Labelled

MIXINGS: dict[str, Any] = {"mixup": v2.MixUp, "cutmix": v2.CutMix}


def mix(images: Labelled, settings: Data, classes: int, seed: int) -> Labelled:
    """Mix each image of a batch with its neighbour, by one random proportion for the whole batch.

    Args:
        images: with labels (N,), int64; their order is random.
        settings: ``mixing`` and ``mixing_alpha``, the parameter of the Beta distribution of the proportion.
        classes: number of classes.
        seed: of the random numbers.

    Returns:
        Mixed images, and as labels the proportions of the classes, (N, classes), float32. Without
        ``mixing``, the same images and labels.
    """
    if settings.mixing == "none" or not len(images.x):
        return images
    transform = MIXINGS[settings.mixing](alpha=settings.mixing_alpha, num_classes=classes)
    # torchvision's transform draws from torch's global generator.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return Labelled(*transform(*images))
