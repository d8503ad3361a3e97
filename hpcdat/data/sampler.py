"""Assign images to workers and steps: pure functions of the seed and the counts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hpcdat.errors import InputError
from hpcdat.seeds import derive

Indices = NDArray[np.int64]
LastBatch = Literal["drop", "short"]


class Share(NamedTuple):
    """One worker's part of a global batch."""

    indices: Indices
    """positions of its images; with ``short`` it may be empty in the last steps of an epoch"""
    global_size: int
    """images of all workers in this step"""


def steps_of_epoch(count: int, batch_size: int, batches: int, last_batch: LastBatch) -> int:
    """Number of steps of an epoch.

    With ``drop`` it does not depend on how the images are divided among groups: a group of q workers has at
    least ``steps * batch_size * q`` images. With ``short`` it is that of workers which share all images.

    Args:
        count: number of training images.
        batch_size: images of a worker in a full step.
        batches: batches in a step, one for each worker that reads its own.
        last_batch: what happens to the images that do not fill a global batch.

    Raises:
        InputError: with ``drop`` the epoch would have no step.
    """
    size = batch_size * batches
    if last_batch == "short":
        return -(-count // size)
    if count < size:
        raise InputError(
            f"data.last_batch: drop: an epoch has {count} images and a global batch {batches} x {batch_size} "
            f"= {size}, so it would have no step: take fewer workers, a smaller batch_size or "
            "data.last_batch: short",
            everywhere=True,
        )
    return count // size


def training_shares(
    count: int,
    batch_size: int,
    *,
    rank: int,
    groups: Sequence[int],
    seed: int,
    epoch: int,
    last_batch: LastBatch = "drop",
) -> list[Share]:
    """A worker's batches B_t^(i) of one epoch.

    The images are divided once and for all among groups of workers, in proportion to their sizes. If each
    node is a group, the parts are the local data sets D^(i) of Algorithm 1 of the DAT paper; if each worker
    is one, the D^k of the ConAdv paper; a single group divides nothing. In every epoch the workers of a group
    shuffle its images in the same way, cut them into batches of ``batch_size`` for each of them, and each
    takes its slice. M workers of one group with batch B thus see what one worker with batch M * B sees.

    Images left at the end of an epoch do not fill a global batch. ``drop`` omits them, so that every worker
    has ``batch_size`` images in every step; the order is new in each epoch, so over the epochs all images
    have the same chance. ``short`` divides them as evenly as possible, and every image is seen once per
    epoch.

    Args:
        count: number of training images.
        batch_size: images of a worker in a full step.
        rank: this worker.
        groups: the group of each worker, from 0.
        seed: the job's.
        epoch: from 0; each has its own order.
        last_batch: ``drop`` or ``short``.

    Returns:
        As many shares on every worker.

    Raises:
        InputError: with ``drop`` the epoch would have no step.
    """
    steps = None if last_batch == "short" else steps_of_epoch(count, batch_size, len(groups), last_batch)
    own, sizes = groups[rank], np.bincount(groups)
    place = sum(group == own for group in groups[:rank])
    lengths, widths = np.diff(_bounds(count, sizes)), batch_size * sizes
    if steps is None:
        steps = int((-(-lengths // widths)).max())
    random = np.random.default_rng(derive(seed, "order", epoch, own))
    order = random.permutation(_part(count, sizes, own, seed))
    shares = []
    for number in range(steps):
        begin = number * int(widths[own])
        batch = order[begin : begin + int(widths[own])]
        start, stop = _slice(len(batch), int(sizes[own]), place)
        images = np.clip(lengths - number * widths, 0, widths).sum()
        shares.append(Share(batch[start:stop], int(images)))
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

    An epoch is a pass over the labelled images. The unlabelled ones are divided among the groups in the same
    way and shuffled for each epoch; they are repeated if there are fewer than the epoch needs.

    Args:
        shares: of labelled images.
        labelled, unlabelled: numbers of images; positions of unlabelled ones begin at ``labelled``.
        mixture: labelled and unlabelled images of a worker's full batch; a short batch has the same
            ratio, to the nearest image.
        rank, groups: as for :func:`training_shares`.
        seed: the job's.
        epoch: from 0.

    Raises:
        InputError: there are too few unlabelled images for every group to have one.
    """
    own, sizes = groups[rank], np.bincount(groups)
    of_own, others = mixture
    if not np.diff(_bounds(unlabelled, sizes)).all():
        raise InputError(
            f"data.unlabelled: {unlabelled} images are too few for {len(sizes)} nodes (or workers) with "
            "images of their own: take more images or data.split: workers",
            everywhere=True,
        )
    random = np.random.default_rng(derive(seed, "unlabelled", epoch, own))
    order = labelled + random.permutation(_part(unlabelled, sizes, own, seed))
    members = np.flatnonzero(np.asarray(groups) == own)
    place = int(np.searchsorted(members, rank))
    taken, mixed = 0, []
    for share in shares:
        more = round(share.global_size * others / of_own)
        start, stop = _slice(more, len(groups), rank)
        # The first workers have one more than the others; as many of them are in this group.
        fewest, longer = divmod(more, len(groups))
        longer = int(np.searchsorted(members, longer))
        places = np.arange(stop - start) + taken + place * fewest + min(place, longer)
        taken += len(members) * fewest + longer
        indices = np.concatenate([share.indices, order.take(places, mode="wrap")])
        mixed.append(Share(indices, share.global_size + more))
    return mixed


def images_of_groups(count: int, groups: Sequence[int], wanted: Iterable[int], *, seed: int) -> Indices:
    """Positions of the images that some groups of :func:`training_shares` have, in order.

    Args:
        count: number of images.
        groups, seed: as for :func:`training_shares`.
        wanted: the groups.
    """
    sizes = np.bincount(groups)
    parts = [_part(count, sizes, group, seed) for group in wanted]
    return np.sort(np.concatenate([np.empty(0, np.int64), *parts]))


def _slice(count: int, parts: int, place: int) -> tuple[int, int]:
    """Begin and end of a part of ``count`` things, as ``np.array_split`` divides them, without the others."""
    fewest, longer = divmod(count, parts)
    start = place * fewest + min(place, longer)
    return start, start + fewest + int(place < longer)


def _bounds(count: int, sizes: Indices) -> Indices:
    """Where the images of each group begin in the shuffled list, in proportion to its size, and the end."""
    bounds: Indices = count * np.concatenate([[0], np.cumsum(sizes)]) // sizes.sum()
    return bounds


def _part(count: int, sizes: Indices, group: int, seed: int) -> Indices:
    """Positions of a group's images, in order."""
    shuffled = np.random.default_rng(derive(seed, "split")).permutation(count)
    bounds = _bounds(count, sizes)
    return np.sort(shuffled[bounds[group] : bounds[group + 1]])


def evaluation_batches(count: int, batch_size: int) -> list[Indices]:
    """Cut a list of images into batches, in order; the last one may be shorter.

    Args:
        count: number of images.
        batch_size: images of a batch, >= 1.
    """
    return [np.arange(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]
