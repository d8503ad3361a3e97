"""Measure how fast the nodes read the job's images, and how fast the job needs them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from concurrent.futures import wait
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import numpy as np

from hpcdat.config.job import Job
from hpcdat.data import find_images
from hpcdat.data.encoded_images import EncodedImages
from hpcdat.data.image_file import Unusable
from hpcdat.data.listing import find_together
from hpcdat.data.read_ahead import ReadAhead
from hpcdat.distributed.communicator import Communicator
from hpcdat.distributed.stop_signals import StopRequest
from hpcdat.distributed.uneven_work import run_unevenly
from hpcdat.errors import InputError, WorkerError
from hpcdat.performance.samples import SECONDS_TO_AGREE
from hpcdat.performance.step_timing import time_share

SECONDS = 3.0
"""How long every worker reads."""
FILES_AT_ONCE = 64
"""Images of a batch that is read."""


@dataclass(frozen=True)
class Storage:
    """How fast a node reads images while all nodes read.

    Attributes:
        host: the node.
        images: that its workers read per second.
        bytes: likewise.
        needed: images per second that its workers need for the job's steps; None if no step could be timed.
    """

    host: str
    images: float
    bytes: float
    needed: float | None


def measure_storage(job: Job, workers: Communicator, stop: StopRequest) -> list[Storage]:
    """Have all workers read training images at once, each in an order of its own, as in training.

    Images that were read shortly before come from memory. All workers call this together.

    Args:
        job: resolved.
        workers: started like those of the run.
        stop: stop request.

    Returns:
        One entry a node, in the order of nodes, the same on all workers; none if the job's images are not
        read from files, or cannot be found.

    Raises:
        Stopped: a stop was requested.
        WorkerError: a worker was lost.
    """
    if not job.data.has_folders:
        return []
    try:
        images, _ = find_together(partial(find_images, job.data), job.data, workers)
    except InputError:
        # The check of the images says why.
        return []
    encoded = images.encoded
    assert encoded is not None
    if workers.is_rank0:
        print(f"reading images for {SECONDS:.0f} s", file=sys.stderr, flush=True)
    read = run_unevenly(workers, "read images", partial(_read, encoded, workers.rank), stop)
    needed = _needed(job, len(images.classes), workers, stop)
    every = workers.all_gather_object([workers.host, *read], "storage")
    found = []
    for node in range(workers.nodes):
        of_node = [one for one, place in zip(every, workers.node_of, strict=True) if place == node]
        rates = [sum(rates) for rates in zip(*(one[1:] for one in of_node), strict=True)]
        wanted = None if needed is None else needed * len(of_node)
        found.append(Storage(of_node[0][0], rates[0], rates[1], wanted))
    return found


def _read(encoded: EncodedImages, rank: int, poll: Callable[[], None]) -> tuple[float, float]:
    """Images and bytes per second that this worker reads."""
    order = np.random.default_rng(rank).permutation(len(encoded))
    batches = (order[at : at + FILES_AT_ONCE] for at in range(0, len(order), FILES_AT_ONCE))
    count = size = 0
    with closing(ReadAhead()) as reader:
        begin = time.monotonic()
        for reading in reader.read(encoded, batches):
            poll()
            wait(reading)
            read = [one for one in (future.result() for future in reading) if not isinstance(one, Unusable)]
            count, size = count + len(read), size + sum(map(len, read))
            if (seconds := time.monotonic() - begin) > SECONDS:
                break
    return count / seconds, size / seconds


def _needed(job: Job, classes: int, workers: Communicator, stop: StopRequest) -> float | None:
    """Images per second that a worker needs."""
    if workers.is_rank0:
        print(f"timing a step, about {SECONDS_TO_AGREE:.0f} s at most", file=sys.stderr, flush=True)
    try:
        timing, _ = time_share(job, classes, workers, workers.local_size, stop)
    except WorkerError:
        # The machine is too noisy.
        return None
    return job.batch_size / (job.batch_size * (timing.attack + timing.gradient) + timing.update)
