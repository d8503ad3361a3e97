"""The PGD attack of evaluations (DAT, Sec. 6.1)."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from hpcdat.attacks.pgd import PGD
from hpcdat.config.sections import Evaluation, Norm
from hpcdat.models.losses import clean_loss
from hpcdat.seeds import derive


def is_correct(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Which images are classified correctly, (N,) bool."""
    with torch.no_grad():
        correct: Tensor = model(x).argmax(1) == y
    return correct


def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    settings: Evaluation,
    norm: Norm,
    generator: torch.Generator,
    start: Tensor | None = None,
) -> Tensor:
    """Attack the cross entropy by PGD.

    Args:
        model: from images to logits.
        x: images (N, C, H, W) in [0, 1].
        y: labels (N,), int64.
        settings: of the attack, resolved.
        norm: of the ball.
        generator: of the random start.
        start: continue from these points, like x, instead of a random start.

    Returns:
        Adversarial images, like x.
    """
    return PGD.from_settings(settings, norm)(model, partial(clean_loss, y=y), x, generator, start=start)


def attack_generator(device: torch.device, seed: int, number: int) -> torch.Generator:
    """The source of the random starts in batch ``number``."""
    return torch.Generator(device).manual_seed(derive(seed, "evaluation attack", number))
