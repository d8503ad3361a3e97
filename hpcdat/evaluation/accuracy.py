"""Standard and robust test accuracy: TA and RA of the DAT paper, Sec. 6.1."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from hpcdat.attacks import inner_maximisation
from hpcdat.cluster.stopping import StopRequest
from hpcdat.cluster.workers import Workers
from hpcdat.data import Loader
from hpcdat.data.batches import evaluation_batches
from hpcdat.errors import Stopped
from hpcdat.job import Job
from hpcdat.objectives import clean_loss
from hpcdat.progress import Progress
from hpcdat.seeds import derive


@dataclass(frozen=True)
class Accuracy:
    """Counts of an evaluation.

    Attributes:
        images: images evaluated.
        correct: images classified right.
        robust: images classified right both clean and after the attack.
    """

    images: int
    correct: int
    robust: int

    @property
    def ta(self) -> float:
        """Standard test accuracy, in [0, 1]."""
        return self.correct / self.images

    @property
    def ra(self) -> float:
        """Robust test accuracy against PGD, in [0, 1]."""
        return self.robust / self.images


def measure_accuracy(
    model: nn.Module,
    loader: Loader,
    count: int,
    job: Job,
    workers: Workers,
    progress: Progress,
    stop: StopRequest,
) -> Accuracy:
    """TA and RA over all test images.

    Every worker takes its share of the batches. Batches, and the random starts drawn for them, do
    not depend on the number of workers, so the counts are those of a serial evaluation. An image
    is robust if it is classified right as it is (no perturbation is in the ball, too) and at the
    last point of the attack.

    Args:
        model: equal on all workers; left in the mode it was in.
        loader: of the test images.
        count: number of test images.
        job: the resolved job; its ``evaluation`` section is used, and norm and seed.
        workers: who takes part.
        progress: shows worker 0's share.
        stop: looked at after every batch.

    Raises:
        Stopped: a stop was asked for; there is no result.
    """
    settings = job.evaluation
    mine = evaluation_batches(count, settings.batch_size, rank=workers.rank, size=workers.size)
    device = next(model.parameters()).device
    counts = torch.zeros(2, dtype=torch.int64, device=device)
    generator = torch.Generator(device)
    was_training = model.training
    model.eval()
    progress.begin("evaluation", len(mine))
    try:
        batches = loader.read([indices for _, indices in mine], seed=0)
        for (number, _), (x, y) in zip(mine, batches, strict=True):
            generator.manual_seed(derive(job.seed, "evaluation attack", number))
            x_adv = inner_maximisation(
                model,
                partial(clean_loss, y=y),
                x,
                eps=settings.eps,
                step_size=settings.step_size,
                steps=settings.steps,
                norm=job.attack.norm,
                random_start=settings.random_start,
                generator=generator,
            )
            with torch.no_grad():
                correct = model(x).argmax(1) == y
                robust = correct & (model(x_adv).argmax(1) == y)
            counts += torch.stack([correct.sum(), robust.sum()])
            progress.step()
            if stop.wanted:
                raise Stopped("the evaluation was stopped; the same command does it again")
    finally:
        progress.end()
        model.train(was_training)
    counts = counts.cpu()
    workers.sum([counts], "counts of the evaluation")
    return Accuracy(count, *counts.tolist())
