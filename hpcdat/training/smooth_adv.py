"""Smooth-AT: adversarial training of a smoothed classifier (SmoothAdv, Salman et al. 2019; DAT, Table 2).

Each image passes the network as N noisy copies x + delta + eta_i, eta_i ~ N(0, sigma^2 I), that share one
perturbation. The inner maximisation uses the loss of the smoothed classifier, -log of the copies' mean
probability of y (Salman et al., Sec. 2.2); the cost is the mean of the copies' losses, as in their code, with
the same noise. DAT does not state either. Noisy copies are not clipped.

The copies can be spread over a team of workers that share a batch: N = 20 on ten workers costs each worker as
much as N = 2 costs a single one. In each attack step they exchange one number per image, and sum the
gradients of their copies with respect to it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from hpcdat.attacks.pgd import Loss
from hpcdat.config.job import Job
from hpcdat.config.sections import Smoothing
from hpcdat.distributed.communicator import Communicator
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.models.losses import Labelled, clean_loss
from hpcdat.seeds import derive


def share_copies(job: Job, workers: Communicator) -> NoisyCopies | None:
    """This worker's noisy copies of its batches, None if the job has none; all workers call this together.

    Args:
        job: resolved.
        workers: all that train; ``smoothing.workers`` consecutive ranks are a team.
    """
    if not job.smoothing.sigma:
        return None
    sharing = job.smoothing.workers
    team = (
        SingleProcess() if sharing == 1 else workers.split([rank // sharing for rank in range(workers.size)])
    )
    return NoisyCopies(job.smoothing, job.seed, team)


class NoisyCopies:
    """The noisy copies of images that one worker of a team computes.

    Args:
        settings: the job's ``smoothing`` section.
        seed: the job's; noise is a function of it, the place in training and the number of the copy.
        team: the workers that share the batch; each has a range of the copies, in the order of ranks.
    """

    def __init__(self, settings: Smoothing, seed: int, team: Communicator) -> None:
        self.settings, self.seed, self.team = settings, seed, team
        own = settings.copies // team.size
        self.numbers = range(team.rank * own, (team.rank + 1) * own)

    def smoothed(
        self, model: nn.Module, images: Labelled, epoch: int, step: int, batch: int
    ) -> tuple[nn.Module, Loss]:
        """The smoothed network and its loss, for the inner maximisation; the team calls this together.

        Args:
            model: from images (n, C, H, W) to logits (n, classes).
            images: a batch, unperturbed.
            epoch, step, batch: its place in training.

        Returns:
            A network from the perturbed batch to the logits of this worker's copies,
            (n, k, classes), and phi: -log of the mean probability of y over all N copies, (n,).
            The gradient of phi with respect to the batch is that of all copies, on every worker.
        """
        noise = self.noise(images.x, epoch, step, batch)
        return _Copied(model, noise, self.team), lambda logits: self._soft_loss(logits, images.y)

    def noisy(self, images: Labelled, epoch: int, step: int, batch: int) -> Labelled:
        """This worker's copies of a batch, (n * k, C, H, W), those of an image together, with its label."""
        noise = self.noise(images.x, epoch, step, batch)
        copies = (images.x[:, None] + noise).flatten(0, 1)
        return Labelled(copies, images.y.repeat_interleave(len(self.numbers), dim=0))

    def noise(self, x: Tensor, epoch: int, step: int, batch: int) -> Tensor:
        """Eta of this worker's copies: (n, k, C, H, W), of x's dtype."""
        generator = torch.Generator(x.device)
        like: dict[str, Any] = {"generator": generator, "dtype": x.dtype, "device": x.device}
        noise = x.new_empty(len(x), len(self.numbers), *x.shape[1:])
        for place, number in enumerate(self.numbers):
            generator.manual_seed(derive(self.seed, "noise", epoch, step, batch, number))
            noise[:, place] = torch.randn(x.shape, **like)
        return noise.mul_(self.settings.sigma)

    def _soft_loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """-log of the mean probability of y over the team's copies, (n,), with this worker's gradient.

        d/dz -log(sum_i p_i) = -sum_i (p_i / sum_j p_j) d log p_i / dz: of the other workers' copies
        only the sum is needed. As logarithms, since probabilities may be too small for a float.
        """
        copies = logits.shape[1]
        losses = clean_loss(logits.flatten(0, 1), y.repeat_interleave(copies, dim=0))
        own = (-losses).view(-1, copies).logsumexp(1)
        total = self.team.iall_gather(own.detach(), "probabilities of noisy copies").wait().logsumexp(0)
        share = (own.detach() - total).exp()
        loss: Tensor = math.log(self.settings.copies) - total - share * (own - own.detach())
        return loss


class _Copied(nn.Module):
    """From images to the logits of their noisy copies, (n, k, classes)."""

    def __init__(self, model: nn.Module, noise: Tensor, team: Communicator) -> None:
        super().__init__()
        self.model, self.noise, self.team = model, noise, team

    def forward(self, x: Tensor) -> Tensor:
        shared = x.view_as(x)
        if shared.requires_grad:
            shared.register_hook(self._sum)
        copies = shared[:, None] + self.noise
        logits: Tensor = self.model(copies.flatten(0, 1)).unflatten(0, copies.shape[:2])
        return logits

    def _sum(self, gradient: Tensor) -> Tensor:
        """Sum the gradients of the team, on the way back to the batch that its copies share."""
        total: Tensor = self.team.iall_reduce([gradient.clone()], "input gradients of noisy copies").wait()[0]
        return total
