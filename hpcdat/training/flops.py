"""Floating-point operations of a training, so that runs on any machine can be compared by their computation.

torch's counter counts the operations of the job's network in its convolutions and matrix products, two for a
product and a sum. It counts three kinds of passes of an image; how many of each kind a step has follows from
the job. What is left out, such as batch norm, activations, the update of the weights and the exchange, is
small beside them, and other publications leave it out too.

Let f be the operations of a forward pass. In a network of convolutions and linear layers the gradients with
respect to the inputs of its layers take f again, and those with respect to their weights take f. An attack
step therefore takes 2f and an update 3f, less what the gradient with respect to the images would take in the
first layer. Of products of activations, as in attention, both passes need the gradients of both factors.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.module_tracker import ModuleTracker

from hpcdat.attacks.pgd import attacked, input_gradient
from hpcdat.config.job import Job
from hpcdat.errors import first_line
from hpcdat.models.network_check import IMAGES
from hpcdat.models.random_numbers import seeded


class PassFlops(NamedTuple):
    """Floating-point operations of the passes of one image.

    Attributes:
        forward: of a forward pass.
        attack: of a forward pass and the gradient with respect to the image.
        update: of a forward pass and the gradient with respect to the trained weights.
    """

    forward: int
    attack: int
    update: int


class TrainingFlops:
    """Floating-point operations of attack and update, for each image of a training.

    Args:
        job: resolved.
        model: from images to logits, on its device; it is not changed.

    Attributes:
        remark: why they cannot be counted; empty otherwise.
    """

    def __init__(self, job: Job, model: nn.Module) -> None:
        self.job, self.model, self.remark = job, model, ""
        self._known: dict[int, int | None] = {}

    def of_image(self, size: int) -> int | None:
        """The operations of all workers for an image in an epoch; None if they cannot be counted.

        Args:
            size: height and width of the image, pixels.
        """
        if size not in self._known:
            self._known[size] = self._counted(size)
        return self._known[size]

    def _counted(self, size: int) -> int | None:
        try:
            passes = count_passes(self.model, (self.job.data.channels, size, size))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            self.remark = f"the FLOPs of the training are not counted: {first_line(error)}"
            return None
        return flops_per_image(self.job, passes)


def flops_per_image(job: Job, passes: PassFlops) -> int:
    """Floating-point operations of attack and update for one image, whichever workers share them.

    Args:
        job: resolved.
        passes: of its network, for an image of the size that is trained on.
    """
    attack = 0
    if job.oracle != "none":
        assert job.attack.steps is not None  # the job is resolved
        attack = job.attack.steps * passes.attack
        if job.objective.regulariser == "trades":
            # The outputs for the image itself, which the attack maximises the divergence from.
            attack += passes.forward
    updates = sum(weight > 0 for weight in job.weights_of_cost)
    return job.copies * (attack + updates * passes.update)


def count_passes(model: nn.Module, shape: tuple[int, int, int]) -> PassFlops:
    """Count the operations of a network's passes by passing images through it in evaluation mode.

    Modes, buffers, gradients and random numbers are as before in the end.

    Args:
        model: from images to logits, on its device.
        shape: of an image: channels, height, width.
    """
    device = next(model.parameters()).device
    images = torch.full((IMAGES, *shape), 0.5, device=device)
    learning = [p for p in model.parameters() if p.requires_grad]

    def update() -> None:
        # Not backward(): nothing may arrive in the parameters' gradients, nor their exchange begin.
        torch.autograd.grad(model(images).sum(), learning, allow_unused=True)

    # Fused attention differs between devices, and torch's counter does not know all of its forms.
    with seeded(0, device), sdpa_kernel(SDPBackend.MATH), attacked(model, "eval"), torch.enable_grad():
        # With a gradient to come: without one, torch's attention takes a path of its own.
        forward = flops_of(partial(model, images.clone().requires_grad_()))
        attack = flops_of(partial(input_gradient, model, _sums, images))
        for p in learning:
            p.requires_grad_()
        counted = (forward, attack, flops_of(update))
    return PassFlops(*(flops // IMAGES for flops in counted))


def flops_of(work: Callable[[], object]) -> int:
    """Floating-point operations of a piece of work, as torch's counter counts them.

    It counts those in convolutions and matrix products, two for a product and a sum, and no others.
    """
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _NoModules()
    with counter:
        work()
    return counter.get_total_flops()


def _sums(logits: Tensor) -> Tensor:
    return logits.sum(1)


class _NoModules(ModuleTracker):
    """Attributes nothing to modules: the hooks for that fail where an attack asks for gradients of a leaf."""

    def __enter__(self) -> ModuleTracker:
        return self

    def __exit__(self, *error: object) -> None:
        pass
