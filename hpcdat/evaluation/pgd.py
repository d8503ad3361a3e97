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
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        correct: Tensor,
        generator: torch.Generator,
        *,
        folded: nn.Module | None = None,
    ) -> Tensor:
        """The images that are correct without attack and at the last point from each random start.

        Args:
            model: from images to logits.
            x: images (N, C, H, W) in [0, 1].
            y: labels (N,), int64.
            correct: images classified correctly without attack, (N,) bool.
            generator: of the random starts.
            folded: the model with its batch norm folded, which is attacked in its place; verdicts are the
                model's.

        Returns:
            (N,) bool.
        """
        robust = correct
        # The first start is drawn for all images, so that it does not depend on the model.
        start = self.pgd.random_points(x, generator) if self.pgd.random_start else None
        for _ in range(self.restarts):
            if robust.any():
                robust, _points = self.still_robust(model, x, y, robust, generator, start, folded=folded)
            start = None
        return robust

    def still_robust(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        robust: Tensor,
        generator: torch.Generator,
        start: Tensor | None = None,
        *,
        folded: nn.Module | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Attack the images that are still robust once more.

        Args:
            model, x, y, generator, folded: as for :meth:`robust`.
            robust: images to attack, (N,) bool, at least one.
            start: continue from these points, like x, instead of from a random start.

        Returns:
            Those that are robust to this attack too, (N,) bool, and the points at which the attack ended,
            like ``x[robust]``.
        """
        x_left, y_left = x[robust], y[robust]
        from_here = None if start is None else start[robust]
        loss = partial(clean_loss, y=y_left)
        points = self.pgd(folded or model, loss, x_left, generator, start=from_here, wait=False)
        return robust.masked_scatter(robust, is_correct(model, points, y_left)), points


def attack_generator(device: torch.device, seed: int, number: int) -> torch.Generator:
    """The source of the random starts in batch ``number``."""
    return torch.Generator(device).manual_seed(derive(seed, "evaluation attack", number))
