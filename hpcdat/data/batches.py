"""Which worker reads which images in which step: pure functions of the seed and the numbers."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hpcdat.seeds import derive

Indices = NDArray[np.int64]


class Share(NamedTuple):
    """One worker's part of a global batch."""

    indices: Indices
    """positions of its images; may be empty in the last step of an epoch"""
    global_size: int
    """images of all workers in this step"""


def training_shares(
    count: int, batch_size: int, *, rank: int, size: int, seed: int, epoch: int
) -> list[Share]:
    """A worker's batches B_t^(i) of one epoch.

    All workers shuffle the images alike and cut them into global batches of ``size * batch_size``;
    each takes its slice. Every image is seen once an epoch; the last, short global batch is dealt
    out as evenly as it can be. M workers with batch B thus see what one worker with batch M * B sees.

    Args:
        count: number of training images.
        batch_size: images of a worker in a full step.
        rank, size: this worker, and how many there are.
        seed: the job's.
        epoch: from 0; each has its own order.
    """
    order = np.random.default_rng(derive(seed, "order", epoch)).permutation(count)
    global_size = batch_size * size
    steps = [order[start : start + global_size] for start in range(0, count, global_size)]
    return [Share(np.array_split(step, size)[rank], len(step)) for step in steps]


def evaluation_batches(count: int, batch_size: int, *, rank: int, size: int) -> list[tuple[int, Indices]]:
    """A worker's batches of an evaluation, with their numbers.

    The images are cut into batches in their order, the same for any number of workers, and dealt
    out in turn: sums of counts over the workers are exactly those of a serial evaluation.
    """
    starts = list(enumerate(range(0, count, batch_size)))[rank::size]
    return [(number, np.arange(start, min(start + batch_size, count))) for number, start in starts]
