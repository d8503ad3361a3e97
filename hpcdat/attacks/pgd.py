"""The inner maximisation oracle (A1): PGD, and FGSM as its one-step case, in l-inf and l2 balls.

Sources: Madry et al. 2017 (PGD); Wong et al. 2020 (FGSM with a random start); de Jorge et al. 2022
(N-FGSM); DAT, Algorithm A1, step 5; ConAdv, eq. (3) and (5).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from hpcdat.attacks.norm_balls import BALLS
from hpcdat.models.split_batch_norm import Branch, routed

if TYPE_CHECKING:
    from hpcdat.config.measurements import Evaluation
    from hpcdat.config.sections import Attack, Norm

MAX_EPS_AND_STEP = 1e4
"""Upper bound of eps and step_size, larger than any image's diameter; larger values have wrong units."""

Loss = Callable[[Tensor], Tensor]
"""Loss of each sample, (N,), as a function of the model's outputs (N, ...): phi of DAT's eq. (2)."""


@dataclass(frozen=True, kw_only=True)
class PGD:
    """Projected gradient ascent on a loss within a ball around each image.

    ``steps > 1`` is PGD (Madry et al. 2017). One step of ``step_size = 1.25 eps`` from a random start is
    Fast AT's FGSM (Wong et al. 2020), one step of ``step_size = eps`` without random start the plain FGSM.
    N-FGSM (de Jorge et al. 2022) is one step of ``step_size = eps`` with ``noise=2, projection=False``.

    Attributes:
        eps: radius of the ball, [0, 1] units, in [0, 1e4].
        step_size: length of a step in the same norm and units, in [0, 1e4]; alpha of ConAdv with
            ``direction="gradient"``.
        steps: number of gradient steps, >= 1.
        norm: norm of the ball, a key of :data:`hpcdat.attacks.norm_balls.BALLS`.
        direction: of a step: ``steepest`` ascent of the norm, or the ``gradient`` itself (ConAdv, eq. (3)
            and (5)).
        random_start: start uniformly in the ball, clipped to [0, 1], instead of at the image.
        noise: radius of the ball of random starts, in multiples of eps, >= 0.
        projection: project onto the ball of radius eps; without it, only [0, 1] bounds the images.
        batch_norm: statistics the attacked model's batch norm uses: ``eval`` the running ones, ``train``
            those of the attacked batch. Everything else is in evaluation mode.
        branch: of split batch norm, for the attacked images.

    Raises:
        ValueError: eps, step size, noise or number of steps out of range; an unknown norm or batch-norm mode.

    Example:
        >>> from functools import partial
        >>> from hpcdat import PGD
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 10))
        >>> x, y = torch.rand(4, 3, 8, 8), torch.tensor([0, 3, 1, 9])
        >>> attack = PGD(eps=8 / 255, step_size=2 / 255, steps=10)
        >>> loss = partial(nn.functional.cross_entropy, target=y, reduction="none")
        >>> x_adv = attack(model, loss, x, torch.Generator().manual_seed(0))
        >>> bool(((x_adv - x).abs() <= 8 / 255).all() and (loss(model(x_adv)) > loss(model(x))).all())
        True
    """

    eps: float
    step_size: float
    steps: int
    norm: Norm = "linf"
    direction: Literal["steepest", "gradient"] = "steepest"
    random_start: bool = True
    noise: float = 1.0
    projection: bool = True
    batch_norm: Literal["eval", "train"] = "eval"
    branch: Branch = "clean"

    def __post_init__(self) -> None:
        if self.norm not in BALLS:
            raise ValueError(f"norm {self.norm!r} is unknown; one of {', '.join(BALLS)}")
        if self.batch_norm not in ("eval", "train"):
            raise ValueError(f"batch-norm mode {self.batch_norm!r} is unknown; one of eval, train")
        lengths = (self.eps, self.step_size, self.noise * self.eps)
        in_range = all(0 <= length <= MAX_EPS_AND_STEP for length in lengths)
        if not in_range or self.steps < 1:
            raise ValueError(
                f"eps {self.eps}, step_size {self.step_size} and noise {self.noise} times eps must lie in "
                f"[0, {MAX_EPS_AND_STEP:g}] ([0, 1] pixel units) and steps {self.steps} must be at least 1"
            )

    @classmethod
    def from_settings(cls, settings: Attack | Evaluation, norm: Norm | None = None) -> PGD:
        """The attack that a section of a job describes, with defaults for what the section does not set.

        Args:
            settings: ``attack`` or ``evaluation``, resolved.
            norm: of the ball; for ``evaluation``, which has none, that of the job's ``attack``.
        """
        given = settings.model_dump(include={field.name for field in fields(cls)})
        return cls(**given | ({"norm": norm} if norm else {}))

    def __call__(
        self,
        model: nn.Module,
        loss: Loss,
        x: Tensor,
        generator: torch.Generator | None = None,
        *,
        start: Tensor | None = None,
        wait: bool = True,
    ) -> Tensor:
        """Perturbed images that (nearly) maximise the loss in the ball around each image, (A1).

        Each step moves by ``step_size`` along ``direction`` and projects onto the ball and [0, 1]. A sample
        whose gradient is zero, or whose step is not finite, does not move in that step.

        The model's modes, buffers, parameter gradients and ``requires_grad`` are restored. Random numbers
        come only from ``generator``; torch's global random state is not used.

        Args:
            model: from images to outputs, including any normalisation.
            loss: from outputs to one value per sample.
            x: images (N, C, H, W), floating point in [0, 1].
            generator: source of the random start, on x's device; not needed without one.
            start: starting points, like x, in place of a random start; projected onto the ball.
            wait: whether to wait for the GPU until it has checked that x lies in [0, 1]. If not, images
                outside [0, 1] abort the process's work on the GPU some time later, with the same message.

        Returns:
            Images of x's shape and dtype in [0, 1], without gradient history; with ``projection`` no farther
            than eps from x, even after rounding.

        Raises:
            ValueError: x is not floating point or leaves [0, 1]; a random start without a generator.
        """
        at_random = self.random_start and start is None
        if at_random and generator is None:
            raise ValueError("a random start needs a generator: the global random state is not used")
        _check_images(x, wait=wait)
        if x.numel() == 0:
            return x.detach().clone()
        x = x.detach()
        ball = BALLS[self.norm](x, self.eps if self.projection else math.inf)
        with attacked(model, self.batch_norm), routed(model, self.branch), torch.enable_grad():
            x_adv = x if start is None else ball.project(start.detach())
            if at_random and generator is not None:
                x_adv = self.random_points(x, generator)
            for _ in range(self.steps):
                gradient = input_gradient(model, loss, x_adv)
                direction = ball.steepest(gradient) if self.direction == "steepest" else gradient
                x_adv = ball.project(x_adv + _finite(self.step_size * direction))
        return ball.round_inside(x_adv)

    def random_points(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """The points from which an attack with a random start begins, like x.

        Args:
            x: images (N, C, H, W), floating point in [0, 1].
            generator: source of the random numbers, on x's device.
        """
        ball = BALLS[self.norm](x, self.eps if self.projection else math.inf)
        return ball.project(x + BALLS[self.norm](x, self.noise * self.eps).sample(generator))


def input_gradient(model: nn.Module, loss: Loss, x: Tensor) -> Tensor:
    """Gradient (N, C, H, W) of each sample's loss with respect to its own pixels.

    It uses ``torch.autograd.grad``, so no parameter gradient is computed and no parameter hook (Horovod's,
    DDP's) is called.
    """
    x = x.detach().requires_grad_()
    return torch.autograd.grad(loss(model(x)).sum(), x)[0]


def _finite(step: Tensor) -> Tensor:
    """The step, or 0 for a sample where it is not finite."""
    finite = step.isfinite().flatten(1).all(1).view(-1, *[1] * (step.dim() - 1))
    return torch.where(finite, step, 0)


@contextmanager
def attacked(model: nn.Module, batch_norm: Literal["eval", "train"]) -> Iterator[None]:
    """Put the model in the attack's mode inside the block, without updates of running statistics.

    Parameters do not require gradients in the block: activations needed only for them are not saved, nor, in
    a compiled model, computed.
    """
    training = [(module, module.training) for module in model.modules()]
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    tracking = [(module, module.track_running_stats) for module in norms]
    learning = [p for p in model.parameters() if p.requires_grad]
    model.eval()
    try:
        for p in learning:
            p.requires_grad_(False)
        if batch_norm == "train":
            for norm in norms:
                norm.training = True
                # Without tracking, the layer normalises with the batch and updates nothing.
                norm.track_running_stats = False
        yield
    finally:
        for p in learning:
            p.requires_grad_()
        for module, mode in training:
            module.training = mode
        for norm, tracked in tracking:
            norm.track_running_stats = tracked


def _check_images(x: Tensor, *, wait: bool) -> None:
    if not x.is_floating_point():
        raise ValueError(f"images must be floating point in [0, 1], not {x.dtype}")
    inside, message = ((x >= 0) & (x <= 1)).all(), "images must lie in [0, 1]; normalise inside the model"
    if x.is_cuda and not wait:
        torch._assert_async(inside, message)
    elif not inside:
        raise ValueError(message)
