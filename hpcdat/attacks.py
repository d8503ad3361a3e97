"""The inner maximisation oracle (A1): PGD, and FGSM as its one-step case, in l-inf and l2 balls.

Sources: Madry et al. 2017 (PGD); Wong et al. 2020 (FGSM with a random start); DAT, Algorithm A1,
step 5. Torch alone is needed here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from hpcdat.balls import BALLS
from hpcdat.models.split_batch_norm import Branch, routed

LARGEST = 1e4
"""A radius or step beyond any image's diameter: a mistake in the units."""

Regulariser = Callable[[Tensor], Tensor]
"""phi of eq. (2) as a function of the model's outputs (N, ...); returns one value a sample (N,)."""


def inner_maximisation(
    model: nn.Module,
    phi: Regulariser,
    x: Tensor,
    *,
    eps: float,
    step_size: float,
    steps: int,
    norm: Literal["linf", "l2"] = "linf",
    direction: Literal["steepest", "gradient"] = "steepest",
    random_start: bool = True,
    start: Tensor | None = None,
    batch_norm: Literal["eval", "train"] = "eval",
    branch: Branch = "clean",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Perturbed images that (nearly) maximise phi in the ball around each image, (A1).

    One step of ``step_size = 1.25 eps`` from a random start is Fast AT's FGSM; ``steps > 1`` is
    PGD; ``random_start=False, steps=1, step_size=eps`` is the plain FGSM. Each step moves along
    the steepest ascent of the norm, or by a multiple of the gradient itself (ConAdv, eq. (3) and
    (5)), and projects onto ball and box. A sample whose gradient is
    zero or not finite stays where it is for that step.

    The model is left as it was: mode, buffers, parameter gradients and ``requires_grad``. Random
    numbers come from ``generator`` alone; torch's global random state is not touched.

    Args:
        model: from images to outputs; normalisation, if any, inside.
        phi: robustness regulariser of eq. (2), from outputs to one value a sample.
        x: images (N, C, H, W), floating point in [0, 1].
        eps: radius of the ball, [0, 1] units, in [0, 1e4].
        step_size: length of a step in the same norm and units, in [0, 1e4]; alpha of ConAdv with
            ``direction="gradient"``.
        steps: number of gradient steps, >= 1.
        norm: norm of the ball, a key of :data:`hpcdat.balls.BALLS`.
        direction: ``steepest`` or ``gradient``.
        random_start: start uniformly in the ball, clipped to [0, 1], instead of at ``x``.
        start: start from these points, like x, instead; what lies outside the ball is projected. They
            need ``random_start=False``.
        batch_norm: statistics the attacked model's batch norm uses: ``eval`` the running ones,
            ``train`` those of the attacked batch. Everything else is in evaluation mode.
        branch: of split batch norm that the attacked images pass.
        generator: source of the random start, on x's device; None needs ``random_start=False``.

    Returns:
        Images of x's shape and dtype in [0, 1], no farther than eps from x (never, also not by
        rounding), without gradient history.

    Raises:
        ValueError: x is not floating point or leaves [0, 1]; eps or step size out of range; a
            random start without a generator or beside ``start``; an unknown norm or batch-norm mode.
    """
    if random_start and start is not None:
        raise ValueError("points to start from leave no random start")
    _check(x, eps, step_size, steps, norm, batch_norm, random_start, generator)
    if x.numel() == 0:
        return x.detach().clone()
    x = x.detach()
    ball = BALLS[norm](x, eps)
    with attacked(model, batch_norm), routed(model, branch), torch.enable_grad():
        x_adv = x if start is None else ball.project(start.detach())
        if random_start:
            x_adv = ball.project(x + ball.sample(generator))
        for _ in range(steps):
            gradient = input_gradient(model, phi, x_adv)
            move = ball.steepest(gradient) if direction == "steepest" else _finite(gradient)
            x_adv = ball.project(x_adv + step_size * move)
    return ball.round_inside(x_adv)


def input_gradient(model: nn.Module, phi: Regulariser, x: Tensor) -> Tensor:
    """Gradient (N, C, H, W) of each sample's phi with respect to its own pixels.

    Taken with ``torch.autograd.grad``: no parameter gradient is computed and no hook that waits
    for one (Horovod's, DDP's) fires.
    """
    x = x.detach().requires_grad_()
    return torch.autograd.grad(phi(model(x)).sum(), x)[0]


def _finite(gradient: Tensor) -> Tensor:
    """The gradient, or 0 for a sample where it is not finite."""
    whole = gradient.isfinite().flatten(1).all(1).view(-1, *[1] * (gradient.dim() - 1))
    return torch.where(whole, gradient, 0)


@contextmanager
def attacked(model: nn.Module, batch_norm: Literal["eval", "train"]) -> Iterator[None]:
    """Put the model in the attack's mode and back, with its running statistics untouched.

    No gradient of the weights is asked for: what only they need is neither kept nor, by a compiled model,
    computed.
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
            for module in norms:
                module.training = True
                # Without tracking, the layer normalises with the batch and updates nothing.
                module.track_running_stats = False
        yield
    finally:
        for p in learning:
            p.requires_grad_()
        for module, mode in training:
            module.training = mode
        for module, tracked in tracking:
            module.track_running_stats = tracked


def _check(
    x: Tensor,
    eps: float,
    step_size: float,
    steps: int,
    norm: str,
    batch_norm: str,
    random_start: bool,
    generator: torch.Generator | None,
) -> None:
    if not x.is_floating_point():
        raise ValueError(f"images must be floating point in [0, 1], not {x.dtype}")
    if norm not in BALLS:
        raise ValueError(f"norm {norm!r} is unknown; one of {', '.join(BALLS)}")
    if batch_norm not in ("eval", "train"):
        raise ValueError(f"batch-norm mode {batch_norm!r} is unknown; one of eval, train")
    if not (0 <= eps <= LARGEST and 0 <= step_size <= LARGEST and steps >= 1):
        raise ValueError(
            f"eps {eps} and step_size {step_size} must lie in [0, {LARGEST:g}] ([0, 1] pixel units) "
            f"and steps {steps} be at least 1"
        )
    if random_start and generator is None:
        raise ValueError("a random start needs a generator: the global random state is not used")
    if x.numel() and not ((x >= 0) & (x <= 1)).all():
        raise ValueError("images must lie in [0, 1]; normalise inside the model")
