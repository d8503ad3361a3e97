"""Ascent on the margin in a relaxed ball: a stronger attack than PGD on the cross entropy.

Sources: Carlini and Wagner 2017 (the margin); Gowal et al. 2019 (one target after another);
Moosavi-Dezfooli et al. 2016 (the closest class of the linearised network). Constraint relaxation (AAAI 2025)
also lets points leave the ball during the attack; its algorithm is a different one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hpcdat.attacks.norm_balls import BALLS
from hpcdat.attacks.pgd import attacked

if TYPE_CHECKING:
    from hpcdat.config.sections import Norm


@dataclass(frozen=True, kw_only=True)
class RelaxedMarginAttack:
    """Projected gradient ascent on the margin of a wrong class over the right one.

    The radius of the ball falls linearly from ``relaxation * eps`` to eps in the first half of the steps. The
    length of a step falls from 2 eps to 0, as half a cosine. An image is left alone as soon as a point within
    eps is classified wrongly, so only robust images cost all steps.

    Attributes:
        eps: radius, [0, 1] units, above 0.
        norm: of the ball.
        steps: gradient steps, >= 1; each is one forward and one backward pass.
        relaxation: radius before the first step, in multiples of eps, >= 1.
    """

    eps: float
    norm: Norm
    steps: int
    relaxation: float

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        generator: torch.Generator,
        *,
        target: Tensor | None = None,
    ) -> Tensor:
        """For each image, the first point within eps that is classified wrongly, or the last one.

        Args:
            model: from images to logits (N, classes); its modes are restored.
            x: images (N, C, H, W), floating point in [0, 1].
            y: labels (N,), int64.
            generator: of the random start, on x's device.
            target: the wrong class of each image, (N,), int64; None: at each step that of the largest logit.

        Returns:
            Images like x, no farther than eps from it, without gradient history.
        """
        ball = BALLS[self.norm]
        points, left = x.detach().clone(), torch.arange(len(x), device=x.device)
        with attacked(model, "eval"), torch.enable_grad():
            x_adv = ball(x, self.eps).project(x + ball(x, self.eps).sample(generator))
            for step in range(self.steps):
                x_adv.requires_grad_()
                logits = model(x_adv)
                if step == 0 or self.radius(step - 1) == self.eps:
                    holds = logits.argmax(1) == y[left]
                    points[left[~holds]] = x_adv.detach()[~holds]
                else:
                    holds = torch.ones_like(left, dtype=torch.bool)
                margins = margin(logits, y[left], None if target is None else target[left])
                (gradient,) = torch.autograd.grad(margins.sum(), x_adv)
                left, x_adv = left[holds], x_adv.detach()[holds]
                if not len(left):
                    break
                relaxed = ball(x[left], self.radius(step))
                direction = relaxed.steepest(gradient[holds])
                x_adv = relaxed.project(x_adv + self.step_size(step) * direction)
            points[left] = x_adv.detach()
        return ball(x, self.eps).round_inside(points)

    def radius(self, step: int) -> float:
        """Radius of the ball that step 0, 1, ... ends in, [0, 1] units."""
        return self.eps * (1 + (self.relaxation - 1) * max(0.0, 1 - 2 * (step + 1) / self.steps))

    def step_size(self, step: int) -> float:
        """Length of step 0, 1, ..., [0, 1] units."""
        return self.eps * (1 + math.cos(math.pi * step / self.steps))


def linearised_margins(
    model: nn.Module, x: Tensor, y: Tensor, targets: Tensor, *, eps: float, norm: Norm
) -> Tensor:
    """Largest margins within eps of images if the network were linear, (N, K).

    They rank targets better than clean logits do, which ignore how fast a margin grows. They cost one forward
    pass and K backward passes.

    Args:
        model: from images to logits (N, classes); its modes are restored.
        x: images (N, C, H, W), floating point in [0, 1].
        y: labels (N,), int64.
        targets: wrong classes of each image, (N, K), int64, K >= 1.
        eps: radius, [0, 1] units.
        norm: of the ball.
    """
    ball = BALLS[norm](x, eps)
    largest = []
    with attacked(model, "eval"), torch.enable_grad():
        images = x.detach().clone().requires_grad_()
        logits = model(images)
        for target in targets.T:
            margins = margin(logits, y, target)
            (gradient,) = torch.autograd.grad(margins.sum(), images, retain_graph=True)
            step = ball.project(x + eps * ball.steepest(gradient)) - x
            largest.append(margins.detach() + (gradient * step).flatten(1).sum(1))
    return torch.stack(largest, 1)


def margin(logits: Tensor, y: Tensor, target: Tensor | None = None) -> Tensor:
    """By how much the logit of a wrong class exceeds that of the right one, (N,).

    Args:
        logits: (N, classes).
        y: labels (N,), int64.
        target: the wrong classes, (N,), int64; None: those of the largest logit.
    """
    right = logits.gather(1, y[:, None])[:, 0]
    if target is None:
        return logits.scatter(1, y[:, None], -math.inf).amax(1) - right
    return logits.gather(1, target[:, None])[:, 0] - right
