"""The PGD attack of evaluations (DAT, Sec. 6.1), and which images withstand it."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from hpcdat.attacks.pgd import PGD
from hpcdat.config.measurements import Evaluation
from hpcdat.config.sections import Norm
from hpcdat.models.losses import clean_loss
from hpcdat.seeds import derive


def is_correct(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Which images are classified correctly, (N,) bool."""
    with torch.no_grad():
        correct: Tensor = model(x).argmax(1) == y
    return correct


class PgdEvaluation:
    """PGD on the cross entropy, configured once, and the images that are robust to it.

    Args:
        settings: of the attack, resolved.
        norm: of the ball.
    """

    def __init__(self, settings: Evaluation, norm: Norm) -> None:
        self.pgd, self.restarts = PGD.from_settings(settings, norm), settings.restarts

    def robust(
        self, model: nn.Module, x: Tensor, y: Tensor, correct: Tensor, generator: torch.Generator
    ) -> Tensor:
        """The images that are correct without attack and at the last point from each random start.

        Args:
            model: from images to logits.
            x: images (N, C, H, W) in [0, 1].
            y: labels (N,), int64.
            correct: images classified correctly without attack, (N,) bool.
            generator: of the random starts.

        Returns:
            (N,) bool.
        """
        # All images are attacked from the first start, so that the starts do not depend on the model.
        robust = correct & is_correct(model, self._attack(model, x, y, generator), y)
        for _ in range(self.restarts - 1):
            if robust.any():
                robust, _points = self.still_robust(model, x, y, robust, generator)
        return robust

    def still_robust(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        robust: Tensor,
        generator: torch.Generator,
        start: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Attack the images that are still robust once more.

        Args:
            model, x, y, generator: as for :meth:`robust`.
            robust: images to attack, (N,) bool, at least one.
            start: continue from these points, like x, instead of from a random start.

        Returns:
            Those that are robust to this attack too, (N,) bool, and the points at which the attack ended,
            like ``x[robust]``.
        """
        x_left, y_left = x[robust], y[robust]
        points = self._attack(model, x_left, y_left, generator, None if start is None else start[robust])
        return robust.masked_scatter(robust, is_correct(model, points, y_left)), points

    def _attack(
        self, model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator, start: Tensor | None = None
    ) -> Tensor:
        return self.pgd(model, partial(clean_loss, y=y), x, generator, start=start, wait=False)


def attack_generator(device: torch.device, seed: int, number: int) -> torch.Generator:
    """The source of the random starts in batch ``number``."""
    return torch.Generator(device).manual_seed(derive(seed, "evaluation attack", number))
