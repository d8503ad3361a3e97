"""A training step of one worker on random images, to be timed: the step of the trainer, without exchanges."""

from __future__ import annotations

import torch
from torch import Tensor

from hpcdat.config.job import Job
from hpcdat.config.sections import Concurrent
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.models import build_model_for
from hpcdat.models.compiled import fastest_convolutions
from hpcdat.models.losses import Labelled
from hpcdat.performance.autotune import exact
from hpcdat.performance.clock import now, seconds
from hpcdat.performance.samples import Sample, longest_wait, seconds_waited
from hpcdat.training.concurrent_attack import Batch
from hpcdat.training.step import Algorithm1

SECONDS_OF_SAMPLE = 0.3
"""Steps are repeated for this long; a sample is their mean."""
MAX_CPU_IMAGES, LONGEST_STEP = 16, 2.0
"""Largest batch of a step on a CPU that would take more than LONGEST_STEP seconds with the job's batch."""


class TrialStep:
    """A training step on a batch of random images, computed repeatedly from the same weights.

    Args:
        job: resolved.
        classes: number of classes.
        device: to compute on.
        images: in the batch.
        attack_steps: steps of the attack; None: the job's.

    Attributes:
        images: as above.
        model: the model, for its shapes.
    """

    def __init__(
        self, job: Job, classes: int, device: torch.device, images: int, attack_steps: int | None = None
    ) -> None:
        self.images, self.device, self._compiled = images, device, job.model.compiled
        self.model = build_model_for(job, classes, device).train()
        one_worker = _single_worker_job(job, images, attack_steps)
        self._algorithm = _Timed(one_worker, self.model, exact(job.exchange), SingleProcess(), device)
        for group in self._algorithm.optimizer.param_groups:
            # The weights stay as they are, so that all steps compute with the same numbers.
            group["lr"] = 0.0
        generator = torch.Generator(device).manual_seed(0)
        shape = (images, job.data.channels, job.data.image_size, job.data.image_size)
        x = torch.rand(shape, device=device, generator=generator)
        y = torch.randint(classes, (images,), device=device, generator=generator)
        self._batch = Batch(0, 0, images, {0: Labelled(x, y)})

    def compute(self) -> None:
        """Compute the step."""
        with fastest_convolutions(self._compiled):
            self._algorithm.step(self._batch, None)

    def sample(self) -> Sample:
        """Compute the step for SECONDS_OF_SAMPLE, once at least; means of its seconds."""
        timed, count = self._algorithm, 0
        timed.attack_seconds = timed.gradient_seconds = 0.0
        waited, began = seconds_waited(), now(self.device)
        while True:
            self.compute()
            count += 1
            elapsed = now(self.device) - began
            if elapsed >= SECONDS_OF_SAMPLE:
                break
        waiting = longest_wait(waited, seconds_waited()) / elapsed
        parts = (timed.attack_seconds / count, timed.gradient_seconds / count)
        return Sample(elapsed / count, *parts, waiting)


class _Timed(Algorithm1):
    """Algorithm 1 that adds up the seconds of the two parts of a worker's computation."""

    attack_seconds = gradient_seconds = 0.0

    def attack(self, batch: Batch, number: int) -> Tensor:
        if self.job.oracle == "none":
            return super().attack(batch, number)
        began = now(self.device)
        perturbed = super().attack(batch, number)
        self.attack_seconds += now(self.device) - began
        return perturbed

    def local_gradient(self, batch: Batch, x_adv: dict[int, Labelled]) -> tuple[Tensor, Tensor]:
        began = now(self.device)
        cost = super().local_gradient(batch, x_adv)
        self.gradient_seconds += now(self.device) - began
        return cost


def trial_step(job: Job, classes: int, device: torch.device) -> TrialStep:
    """A trial with the job's batch, or with MAX_CPU_IMAGES where that takes too long, and warmed up.

    Args:
        job: resolved.
        classes: number of classes.
        device: to compute on.
    """
    whole = job.batch_size
    few = whole if device.type == "cuda" else min(whole, MAX_CPU_IMAGES)
    trial = TrialStep(job, classes, device, few)
    trial.compute()
    # Compiled code is made for one size.
    if few < whole and not job.model.compiled:
        if seconds(trial.compute, device) * whole / few > LONGEST_STEP:
            return trial
        trial = TrialStep(job, classes, device, whole)
        trial.compute()
    return trial


def _single_worker_job(job: Job, batch_size: int, attack_steps: int | None) -> Job:
    """The job for one worker, which attacks and trains on one batch with its share of the noisy copies."""
    attack = job.attack if attack_steps is None else job.attack.model_copy(update={"steps": attack_steps})
    return job.model_copy(
        update={
            "batch_size": batch_size,
            "virtual_workers": 1,
            "concurrent": Concurrent(delay=0),
            "smoothing": job.smoothing.model_copy(update={"copies": job.passes, "workers": 1}),
            "attack": attack,
        }
    )
