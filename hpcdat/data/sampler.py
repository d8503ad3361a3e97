"""Which worker reads which images in which step: pure functions of the seed and the numbers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hpcdat.errors import InputError
from hpcdat.seeds import derive

Indices = NDArray[np.int64]


class Share(NamedTuple):
    """One worker's part of a global batch."""

    indices: Indices
    """positions of its images; may be empty in the last steps of an epoch"""
    global_size: int
    """images of all workers in this step"""


def training_shares(
    count: int, batch_size: int, *, rank: int, groups: Sequence[int], seed: int, epoch: int
) -> list[Share]:
    """A worker's batches B_t^(i) of one epoch.

    The images are divided once and for all among groups of workers, in proportion to their sizes:
    the local data sets D^(i) of Algorithm 1 where each node is a group, or no division where all
    workers are one. In every epoch the workers of a group shuffle its images alike, cut them into
    batches of ``batch_size`` for each of them, and each takes its slice; a last, short batch is dealt
    out as evenly as it can be. Every image is seen once an epoch. M workers of one group with batch B
    thus see what one worker with batch M * B sees.

    Args:
        count: number of training images.
        batch_size: images of a worker in a full step.
        rank: this worker.
        groups: the group of each worker, from 0.
        seed: the job's.
        epoch: from 0; each has its own order.

    Returns:
        As many shares on every worker.
    """
    sizes = np.bincount(groups).tolist()
    steps: list[list[Indices]] = []
    nothing = np.empty(0, dtype=np.int64)
    for group, (part, size) in enumerate(zip(_divided(count, groups, seed), sizes, strict=True)):
        order = np.random.default_rng(derive(seed, "order", epoch, group)).permutation(part)
        width = batch_size * size
        steps.append([order[start : start + width] for start in range(0, len(order), width)])
    own, place = groups[rank], sum(group == groups[rank] for group in groups[:rank])
    shares = []
    for number in range(max(map(len, steps))):
        batches = [of_group[number] if number < len(of_group) else nothing for of_group in steps]
        shares.append(Share(np.array_split(batches[own], sizes[own])[place], sum(map(len, batches))))
    return shares


def with_unlabelled(
    shares: Sequence[Share],
    labelled: int,
    unlabelled: int,
    *,
    mixture: tuple[int, int],
    rank: int,
    groups: Sequence[int],
    seed: int,
    epoch: int,
) -> list[Share]:
    """Mix unlabelled images into a worker's batches: Carmon et al. 2019's fraction of every batch.

    An epoch is a pass over the labelled images. The unlabelled ones are divided among the groups as these
    are, shuffled for each epoch, and gone through as often as it takes.

    Args:
        shares: of labelled images.
        labelled, unlabelled: how many there are; the latter stand behind the former.
        mixture: labelled and unlabelled images of a worker's full batch; a short batch has as many for each
            labelled one, to the nearest image.
        rank, groups: as for :func:`training_shares`.
        seed: the job's.
        epoch: from 0.

    Raises:
        InputError: there are too few unlabelled images for every group to have one.
    """
    own, parts = groups[rank], _divided(unlabelled, groups, seed)
    of_own, others = mixture
    if not all(map(len, parts)):
        raise InputError(
            f"data.unlabelled: {unlabelled} images are too few for {len(parts)} nodes with images of their "
            "own: take more images or data.split: workers",
            everywhere=True,
        )
    random = np.random.default_rng(derive(seed, "unlabelled", epoch, own))
    order = labelled + random.permutation(parts[own])
    taken, mixed = 0, []
    for share in shares:
        more = round(share.global_size * others / of_own)
        sizes = [len(drawn) for drawn in np.array_split(np.arange(more), len(groups))]
        ours = [size if group == own else 0 for size, group in zip(sizes, groups, strict=True)]
        places = np.arange(sizes[rank]) + taken + sum(ours[:rank])
        taken += sum(ours)
        indices = np.concatenate([share.indices, order.take(places, mode="wrap")])
        mixed.append(Share(indices, share.global_size + more))
    return mixed


def _divided(count: int, groups: Sequence[int], seed: int) -> list[Indices]:
    """Positions of images, in order, for each group in proportion to its size."""
    ends = [count * workers // len(groups) for workers in accumulate(np.bincount(groups).tolist())]
    shuffled = np.random.default_rng(derive(seed, "split")).permutation(count)
    return [np.sort(part) for part in np.split(shuffled, ends[:-1])]


def evaluation_batches(count: int, batch_size: int) -> list[Indices]:
    """Cut a list of images into batches, in order; the last one may be shorter.

    Args:
        count: number of images.
        batch_size: images of a batch, >= 1.
    """
    return [np.arange(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]
