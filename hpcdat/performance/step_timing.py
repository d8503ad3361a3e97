"""The time of a worker's computation in a training step, measured with the step of the trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from torch import nn

from hpcdat.config.job import Job
from hpcdat.config.sections import Concurrent
from hpcdat.distributed.environment import device_name
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.models import build_model_for
from hpcdat.models.compiled import fastest_convolutions
from hpcdat.models.losses import Labelled
from hpcdat.performance.autotune import exact
from hpcdat.performance.clock import seconds
from hpcdat.training.concurrent_attack import Batch
from hpcdat.training.roles import Role
from hpcdat.training.step import Algorithm1

REPEATS = 3
"""Repetitions of each measurement, after a warm-up."""
MAX_CPU_IMAGES = 16
"""Largest batch with which a step is timed on a CPU; on a GPU the job's batch size is used."""


@dataclass(frozen=True)
class StepTiming:
    """Seconds of a worker's computation, measured without exchanges.

    Attributes:
        attack: of the inner maximisation, per image, including a worker's noisy copies of it.
        gradient: of the local gradient, likewise.
        update: of the optimiser's step.
        measured_on: description of device and batch.
    """

    attack: float
    gradient: float
    update: float
    measured_on: str

    def step(self, batch: float, roles: Iterable[Role]) -> float:
        """Seconds of a training step on the worker with the most work.

        Args:
            batch: images in a batch.
            roles: of the workers.
        """

        def image(role: Role) -> float:
            halves = len(role.clean) + len(role.adversarial)
            return len(role.attacked) * self.attack + halves / 2 * self.gradient

        return max(map(image, roles)) * batch + self.update


def time_step(
    job: Job, classes: int, device: torch.device
) -> tuple[nn.Module, StepTiming, Callable[[], object]]:
    """Time the attack, the local gradient and the update of a job on random images.

    Args:
        job: resolved.
        classes: number of classes.
        device: to compute on.

    Returns:
        The model, for its shapes; the seconds, medians of REPEATS repetitions; and a function that computes a
        training step with a single attack step.
    """
    model = build_model_for(job, classes).to(device).train()
    size = job.batch_size if device.type == "cuda" else min(job.batch_size, MAX_CPU_IMAGES)
    generator = torch.Generator(device).manual_seed(0)
    shape = (size, job.data.channels, job.data.image_size, job.data.image_size)
    x = torch.rand(shape, device=device, generator=generator)
    images = Labelled(x, torch.randint(classes, (size,), device=device, generator=generator))
    batch = Batch(0, 0, size, {0: images})

    def algorithm(attack_steps: int) -> Algorithm1:
        one_worker = _single_worker_job(job, size, attack_steps)
        return Algorithm1(one_worker, model, exact(job.exchange), SingleProcess(), device)

    def median_of(work: Callable[[], object]) -> float:
        with fastest_convolutions(job.model.compiled):
            return _median_seconds(work, device)

    assert job.attack.steps is not None  # the job is resolved
    whole = algorithm(job.attack.steps)
    timing = StepTiming(
        attack=0.0 if job.oracle == "none" else median_of(partial(whole.attack, batch, 0)) / size,
        gradient=median_of(partial(whole.local_gradient, batch, {0: images})) / size,
        update=median_of(whole.optimizer.step),
        measured_on=f"{device_name(device)}, {size} images a step",
    )
    brief = whole if job.attack.steps == 1 else algorithm(1)
    return model, timing, partial(brief.step, batch, None)


def _single_worker_job(job: Job, batch_size: int, attack_steps: int) -> Job:
    """The job for one worker, which attacks and trains on one batch with its share of the noisy copies."""
    return job.model_copy(
        update={
            "batch_size": batch_size,
            "virtual_workers": 1,
            "concurrent": Concurrent(delay=0),
            "smoothing": job.smoothing.model_copy(update={"copies": job.passes, "workers": 1}),
            "attack": job.attack.model_copy(update={"steps": attack_steps}),
        }
    )


def _median_seconds(work: Callable[[], object], device: torch.device) -> float:
    """Median of REPEATS repetitions, after a warm-up."""
    times = [seconds(work, device) for _ in range(1 + REPEATS)]
    return median(times[1:])
