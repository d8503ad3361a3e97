"""The time of a worker's computation in a training step, measured with the step of the trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch

from hpcdat.config.job import Job
from hpcdat.distributed.communicator import Communicator
from hpcdat.distributed.environment import device_name
from hpcdat.distributed.stop_signals import StopRequest
from hpcdat.distributed.uneven_work import run_unevenly
from hpcdat.performance.node_share import NodeShare, OtherWorkers, share_of_node, use_share
from hpcdat.performance.samples import Sample, Spread, take_until_agreed
from hpcdat.performance.trial_step import trial_step
from hpcdat.training.roles import Role


@dataclass(frozen=True)
class StepTiming:
    """Seconds of a worker's computation, measured without exchanges.

    Attributes:
        attack: of the inner maximisation, per image, including a worker's noisy copies of it.
        gradient: of the local gradient, likewise.
        update: of the rest of a step: the optimiser's update and what is checked before it.
        images: in the batch of the measurement.
        measured_on: description of device, batch, and workers at the same time.
        spread: description of how far the samples differ.
    """

    attack: float
    gradient: float
    update: float
    images: int
    measured_on: str
    spread: str

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


def timing_of(samples: Sequence[Sample], images: int, measured_on: str, slowdown: float = 1.0) -> StepTiming:
    """The timing that samples give: their medians.

    Args:
        samples: two or more.
        images: in the batch.
        measured_on: description.
        slowdown: factor on all seconds.
    """
    rest = median(sample.step - sample.attack - sample.gradient for sample in samples)
    return StepTiming(
        attack=slowdown * median(sample.attack for sample in samples) / images,
        gradient=slowdown * median(sample.gradient for sample in samples) / images,
        update=slowdown * rest,
        images=images,
        measured_on=measured_on,
        spread=Spread.of(samples).describe(),
    )


def time_share(
    job: Job, classes: int, workers: Communicator, per_node: int, stop: StopRequest | None
) -> tuple[StepTiming, torch.device]:
    """Time one worker's step while the others of its node compute too; all workers call this together.

    On each node one worker is timed, next to processes that compute what the others would. The slowest node's
    timing counts.

    Args:
        job: resolved.
        classes: number of classes.
        workers: one or more on each node.
        per_node: workers per node that share its cores (q).
        stop: request to stop.

    Returns:
        The timing, the same on all workers, and this worker's device, with whose threads torch now computes.

    Raises:
        InputError: the job requests a GPU and none is available.
        WorkerError: the machine is too noisy.
        Stopped: a stop was requested.
    """
    device = workers.on_all_ranks("choose a device", lambda: use_share(job, workers, per_node))
    share = share_of_node(workers, per_node, device)

    def work(poll: Callable[[], None]) -> dict[str, Any] | None:
        return asdict(_time(job, classes, device, share, poll)) if workers.local_rank == 0 else None

    timed = run_unevenly(workers, "time a step", work, stop)
    every = [StepTiming(**one) for one in workers.all_gather_object(timed, "timings") if one]
    return max(every, key=lambda one: job.batch_size * (one.attack + one.gradient) + one.update), device


def _time(
    job: Job, classes: int, device: torch.device, share: NodeShare, poll: Callable[[], None]
) -> StepTiming:
    trial = trial_step(job, classes, device)
    measured_on = f"{device_name(device)}, {trial.images} images a step"
    if device.type == "cpu":
        measured_on += f", {share.describe()}"
    with OtherWorkers(job, classes, trial.images, share, poll) as others:

        def take() -> Sample:
            sample = trial.sample()
            others.check()
            return sample

        samples = take_until_agreed(take, poll, own_cores=share.own_cores)
    return timing_of(samples, trial.images, measured_on, share.slowdown)
