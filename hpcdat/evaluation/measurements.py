"""What is done with a batch of test images: TA and RA, and RA over radii or steps (DAT, Sec. 6.1, Fig. 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from hpcdat.attacks.norm_balls import BALLS
from hpcdat.attacks.pgd import PGD, attacked, input_gradient
from hpcdat.evaluation.outcomes import Outcomes
from hpcdat.job import Evaluation, Norm
from hpcdat.objectives import clean_loss
from hpcdat.seeds import derive

NOISE_POINTS = 10
"""Random points of the ball's surface that stand for an attacker without gradients."""


class Measurement(Protocol):
    """Looks at the images of a batch, each for itself.

    Attributes:
        name: of the measurement, as a person and a folder call it.
        settings: all that the outcomes depend on beside model, images, seed and batch size; a JSON value.
        columns: names of the outcomes' columns, in their order.
    """

    name: str
    settings: dict[str, Any]
    columns: Sequence[str]

    def outcomes(self, model: nn.Module, x: Tensor, y: Tensor, seed: int, number: int) -> Outcomes:
        """What became of the images; random numbers depend on seed and number alone.

        Args:
            model: in evaluation mode, and left so.
            x: images (N, C, H, W) in [0, 1], N >= 1.
            y: labels (N,), int64.
            seed: the job's.
            number: of the batch.
        """
        ...


def seen(columns: Mapping[str, Tensor], remarks: Sequence[str] = ()) -> Outcomes:
    """Outcomes from tensors, (N,) bool each, on any device."""
    return Outcomes({name: flags.cpu().numpy() for name, flags in columns.items()}, tuple(remarks))


def right(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Which images are classified right, (N,) bool."""
    with torch.no_grad():
        return model(x).argmax(1) == y


def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    settings: Evaluation,
    norm: Norm,
    generator: torch.Generator,
    start: Tensor | None = None,
) -> Tensor:
    """The last points of the job's evaluation attack on the cross entropy, like x.

    Args:
        model, x, y: attacked.
        settings: of the attack, resolved.
        norm: of the ball.
        generator: of the random start.
        start: points to go on from, like x, in place of a random start.
    """
    return PGD.from_settings(settings, norm)(model, partial(clean_loss, y=y), x, generator, start=start)


def withstands(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    settings: Evaluation,
    norm: Norm,
    generator: torch.Generator,
) -> Tensor:
    """Which images are classified right as they are and at the last point of every attack, (N,) bool.

    The first of ``settings.restarts`` attacks all images, each later one those that are still standing.

    Args:
        model, x, y: attacked.
        settings: of the attack, resolved.
        norm: of the ball.
        generator: of the random starts.
    """
    standing = right(model, x, y) & right(model, pgd(model, x, y, settings, norm, generator), y)
    for _ in range(settings.restarts - 1):
        if standing.any():
            left, labels = x[standing], y[standing]
            x_adv = pgd(model, left, labels, settings, norm, generator)
            standing = standing.masked_scatter(standing, right(model, x_adv, labels))
    return standing


def attack_generator(device: torch.device, seed: int, number: int) -> torch.Generator:
    """Source of the random starts in a batch."""
    return torch.Generator(device).manual_seed(derive(seed, "evaluation attack", number))


class PgdAccuracy:
    """TA, RA, and what tells whether RA can be believed.

    Columns: ``correct``, ``robust`` (right before PGD and after it from every start), ``steady`` (right at
    random points of the ball's surface too), ``gradient`` (the loss has one that is not zero).

    Args:
        settings: of the attack, resolved.
        norm: of its ball.
    """

    name = "accuracy"
    columns = ("correct", "robust", "steady", "gradient")

    def __init__(self, settings: Evaluation, norm: Norm) -> None:
        self.evaluation, self.norm = settings, norm
        self.settings = {
            "norm": norm,
            **settings.model_dump(include={"eps", "steps", "step_size", "random_start", "restarts"}),
            "noise_points": NOISE_POINTS,
        }

    def outcomes(self, model: nn.Module, x: Tensor, y: Tensor, seed: int, number: int) -> Outcomes:  # noqa: D102
        generator = attack_generator(x.device, seed, number)
        correct = right(model, x, y)
        columns = {
            "correct": correct,
            "robust": withstands(model, x, y, self.evaluation, self.norm, generator),
        }
        columns["steady"] = correct.clone()
        noise = torch.Generator(x.device).manual_seed(derive(seed, "evaluation noise", number))
        ball = BALLS[self.norm](x, self.evaluation.eps)
        for _ in range(NOISE_POINTS):
            direction = ball.steepest(torch.randn(x.shape, generator=noise, device=x.device, dtype=x.dtype))
            columns["steady"] &= right(model, ball.project(x + self.evaluation.eps * direction), y)
        with attacked(model, "eval"), torch.enable_grad():
            gradient = input_gradient(model, partial(clean_loss, y=y), x)
        columns["gradient"] = (gradient != 0).flatten(1).any(1)
        return seen(columns)


class Sweep:
    """RA over radii or over numbers of steps: the two halves of DAT's Figure 3.

    A column for each value, true where the image has withstood this and all smaller ones. Over radii, the
    attack goes on from the points it ended at in the smaller ball, which lie in the larger one; over
    steps, every number of them starts afresh. So RA cannot rise. The length of a step is 2.5 eps / steps.

    Args:
        over: what varies.
        values: radii in [0, 1] units, or numbers of steps, in increasing order.
        settings: what does not vary, resolved.
        norm: of the ball.
    """

    def __init__(
        self, over: Literal["eps", "steps"], values: Sequence[float], settings: Evaluation, norm: Norm
    ) -> None:
        self.over, self.values, self.evaluation, self.norm = over, list(values), settings, norm
        self.name = f"sweep-{over}"
        fixed = {"norm": norm, "random_start": settings.random_start}
        fixed |= {"steps": settings.steps} if over == "eps" else {"eps": settings.eps}
        self.settings = {over: self.values, **fixed}
        self.columns = [str(value) for value in self.values]

    def outcomes(self, model: nn.Module, x: Tensor, y: Tensor, seed: int, number: int) -> Outcomes:  # noqa: D102
        generator = attack_generator(x.device, seed, number)
        standing, points, columns = right(model, x, y), None, {}
        for value in self.values:
            eps = value if self.over == "eps" else self.evaluation.eps
            steps = self.evaluation.steps if self.over == "eps" else int(value)
            if eps > 0 and standing.any():
                settings = self.evaluation.with_usual_step_size(eps=eps, steps=steps)
                left, labels = x[standing], y[standing]
                start = points[standing] if points is not None else None
                x_adv = pgd(model, left, labels, settings, self.norm, generator, start)
                if self.over == "eps":
                    points = x.clone() if points is None else points
                    points[standing] = x_adv
                standing = standing.masked_scatter(standing, right(model, x_adv, labels))
            columns[str(value)] = standing
        return seen(columns)
