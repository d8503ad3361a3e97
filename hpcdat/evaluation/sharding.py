"""A measurement over all images: dealt to the workers by batch, kept on disk, merged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from hpcdat.cluster.apart import apart
from hpcdat.cluster.stopping import StopRequest
from hpcdat.cluster.workers import Workers
from hpcdat.data import open_loader
from hpcdat.data.batches import evaluation_batches
from hpcdat.data.images import Images
from hpcdat.errors import InputError
from hpcdat.evaluation import suspicions
from hpcdat.evaluation.identity import identity, rounding
from hpcdat.evaluation.measurements import Measurement
from hpcdat.evaluation.outcomes import Outcomes, Shelf, merge
from hpcdat.files import digest
from hpcdat.job import Job
from hpcdat.memory import enough_memory
from hpcdat.progress import Progress


@dataclass(frozen=True)
class Subject:
    """What is measured, the same on all workers.

    Attributes:
        model: in evaluation mode, on this worker's device.
        job: resolved.
        folder: for the outcomes; all workers see it.
    """

    model: nn.Module
    job: Job
    folder: Path

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def shelf(
        self, measurement: Measurement, images: Images, workers: Workers
    ) -> tuple[Shelf, dict[str, object]]:
        """The place of a measurement's outcomes, and all that they depend on; all workers ask together.

        Another model, other images or settings, and another kind of device or version of torch, which
        round differently, have another place.
        """
        settings = {
            "measurement": measurement.settings,
            **identity(self.model, self.job, images, workers),
            **rounding(self.model),
            "batch_size": self.job.evaluation.batch_size,
            "seed": self.job.seed,
        }
        return Shelf(self.folder / f"{measurement.name}-{digest(settings)[:8]}"), settings


def measure(
    measurement: Measurement,
    subject: Subject,
    images: Images,
    workers: Workers,
    progress: Progress,
    stop: StopRequest,
) -> Outcomes:
    """The outcomes of all images, on all workers; only batches that are not on disk are measured.

    Batches and their random numbers do not depend on the number of workers, and every batch is written
    when it is done, so that whatever ended an evaluation, the next one with any number of workers goes on.

    Args:
        measurement: what is done with a batch.
        subject: the model and where outcomes are kept.
        images: that it is done with.
        workers: who do it; all of them call this together.
        progress: shows worker 0's share.
        stop: the user's wish to stop.

    Raises:
        Stopped: a stop was asked for; what was measured is kept.
        InputError: images lie outside [0, 1], or none can be read.
        WorkerError: something failed on a worker.
    """
    job, name = subject.job, measurement.name
    shelf, settings = subject.shelf(measurement, images, workers)
    batches = dict(evaluation_batches(len(images), job.evaluation.batch_size, rank=0, size=1))

    def look_up() -> dict[int, Outcomes]:
        if not workers.is_first:
            return {}
        shelf.make(settings)
        sizes = {number: len(indices) for number, indices in batches.items()}
        # What was measured where images may be left out is not enough where they may not.
        return shelf.read(sizes, measurement.columns, fewer=job.data.corrupt == "skip")

    found = workers.together(f"keep outcomes in {shelf.folder}", look_up)
    # Worker 0 decides for all: another node may see the folder a moment later.
    missing = _shared(workers, sorted(set(batches) - set(found)), f"missing batches of {name}")
    if found:
        progress.say(f"{name}: {len(found)} of {len(batches)} batches are there already")
    own = missing[workers.rank :: workers.size]

    def work(look: Callable[[], None]) -> dict[int, Outcomes]:
        done: dict[int, Outcomes] = {}
        if not own:
            return done
        loader = open_loader(
            images,
            job.data,
            training=False,
            batch_size=job.evaluation.batch_size,
            device=subject.device,
        )
        # Attacks ask the model often, and take long.
        asked = subject.model.register_forward_pre_hook(lambda *_: look())
        progress.begin(name, len(own))
        try:
            read = loader.read([batches[number] for number in own], seed=0)
            for number, (x, y) in zip(own, read, strict=True):
                if len(x):
                    outside = suspicions.pixels_out_of_range(x.min().item(), x.max().item())
                    if outside:
                        raise InputError(outside[0])
                    with enough_memory(job, "evaluation.batch_size"):
                        done[number] = measurement.outcomes(subject.model, x, y, job.seed, number)
                    shelf.write(number, done[number])
                progress.step()
        finally:
            asked.remove()
            progress.end()
        return done

    done = apart(workers, f"measure {name}", work, stop)
    everything = {
        int(number): Outcomes.from_json(value)
        for part in workers.gather(
            {number: outcomes.to_json() for number, outcomes in {**found, **done}.items()},
            f"outcomes of {name}",
        )
        for number, value in part.items()
    }
    if not everything:
        raise InputError(f"{name}: none of its images can be read", everywhere=True)
    return merge(everything)


def _shared(workers: Workers, numbers: list[int], name: str) -> list[int]:
    """Worker 0's numbers, on all workers."""
    return workers.gather(numbers if workers.is_first else None, name)[0]
