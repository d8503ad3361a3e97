"""Check images before training starts, so that a file that cannot be read is not found hours later.

All test and held-out images are checked, since an evaluation at the end of a run is the first to read them;
they are decoded as well, unless there are very many.
Training images are checked whenever they are read, with the bytes that are read anyway; before training
starts, only a sample of them, since reading all of 1.28 million would delay every start, and many mistakes
affect many files. The workers divide the files among themselves: of ImageNet's 50,000 test images, 6.7 GB,
each of 36 workers reads 190 MB. A run that resumes checks nothing again.

Of shards that ``hpcdat pack`` has written, only the sample of training images is checked: it has inspected
all images, and bytes that have changed since are found by their checksums whenever they are read.

Items of data sets are checked in the same way, but always read as a loader reads them, and of very many test
items only a sample.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np

from hpcdat.config.sections import Data
from hpcdat.data.corrupt_images import HINT, complaint_about
from hpcdat.data.image_file import Unusable, find_fault
from hpcdat.data.images import DataError, Images
from hpcdat.data.item_reader import ItemReader, Place, Stored
from hpcdat.data.read_ahead import Read, ReadAhead
from hpcdat.data.sampler import Indices
from hpcdat.distributed.communicator import Communicator
from hpcdat.distributed.stop_signals import StopRequest
from hpcdat.distributed.uneven_work import results_in_order, run_unevenly
from hpcdat.errors import first_few
from hpcdat.progress import Progress

TRAINING_IMAGES_CHECKED = 2000
"""Training images that each worker checks."""

IMAGES_DECODED = 2000
"""Test images a worker up to which they are decoded; of more, JPEG and PNG only to their end markers, and of
more items a sample of so many."""

FILES_AT_ONCE = 64
"""Encoded images that a thread checks at once."""

ITEMS_AT_ONCE = 16
"""Items that a process reads before it reports."""

MANY = 5000
"""Images of a check that is announced, since it may take more than some seconds."""

COMPLAINTS_SHOWN = 3
"""Images that an error message names."""


def check_images(
    train: Images,
    evaluated: Sequence[Images],
    data: Data,
    workers: Communicator,
    stop: StopRequest | None,
    progress: Progress,
) -> None:
    """Check all images of the evaluations and a sample of the training images.

    All workers call this together. Images in memory are not checked, and neither are those of the loader
    ``device``, which reads all of them before training. With ``corrupt: skip`` only the images of the
    evaluations are checked, and counted.

    Args:
        train: images to train on.
        evaluated: images of the evaluations during training and at its end; a list may be given twice.
        data: the job's ``data`` section.
        workers: check an equal share each.
        stop: request to stop.
        progress: shows worker 0's share.

    Raises:
        DataError: on all workers; an image cannot be read, or with ``corrupt: skip`` none of a list can.
        Stopped: a stop was requested.
    """
    if data.loader == "device":
        return
    lists = list({id(images): images for images in evaluated if not _is_sound(images)}.values())
    tested = sum(map(len, lists))
    checks = [
        _Check(
            images,
            _evenly_spaced(images, len(images) if images.items is None else IMAGES_DECODED * workers.size),
            decoded=tested <= IMAGES_DECODED * workers.size,
        )
        for images in lists
    ]
    if data.corrupt == "stop" and train.pixels is None:
        sample = _evenly_spaced(train, TRAINING_IMAGES_CHECKED * workers.size)
        checks.insert(0, _Check(train, sample, decoded=False))
    count = sum(len(check.indices) for check in checks)
    if not count:
        return
    if count > MANY:
        progress.say(f"checking {count:,} images before training starts")
    shares = _shares(checks, workers.rank, workers.size)
    work = partial(_faults, shares, data, progress)
    found = run_unevenly(workers, "check the images", work, stop)
    every = workers.gather_object(found, "images that cannot be read")
    found = sorted(fault for of_worker in every for fault in of_worker)
    found = workers.broadcast_object(found, "all images that cannot be read")
    faults: list[dict[int, str]] = [{} for _ in checks]
    for number, index, fault in found:
        faults[number][index] = fault
    if found:
        of_images = [(check.images, of_list) for check, of_list in zip(checks, faults, strict=True)]
        _conclude(of_images, count, data, progress)


def _is_sound(images: Images) -> bool:
    """Whether images are in memory, or have been inspected before."""
    return images.pixels is not None or (images.encoded is not None and images.encoded.inspected)


class _Check(NamedTuple):
    """What is checked of a list of images.

    Attributes:
        images: the list.
        indices: positions in it.
        decoded: decode them, too.
    """

    images: Images
    indices: Indices
    decoded: bool


def _evenly_spaced(images: Images, most: int) -> Indices:
    """Positions of all images or of as many, evenly spaced, so that they are of every class."""
    return np.linspace(0, len(images), min(len(images), most), endpoint=False).astype(np.int64)


def _shares(checks: Sequence[_Check], rank: int, size: int) -> list[_Check]:
    """A worker's part of every list: of all images in order, every ``size``-th."""
    starts = accumulate((len(check.indices) for check in checks), initial=0)
    return [
        check._replace(indices=check.indices[(rank - start) % size :: size])
        for check, start in zip(checks, starts, strict=False)
    ]


def _conclude(
    faults: Sequence[tuple[Images, dict[int, str]]], checked: int, data: Data, progress: Progress
) -> None:
    """Report images that cannot be read, or raise an error on all workers."""
    if data.corrupt == "stop":
        complaints = [
            complaint_about(images.files[index], fault)
            for images, of_list in faults
            for index, fault in of_list.items()
        ]
        of = f" of {checked:,} images checked before training" if len(complaints) > COMPLAINTS_SHOWN else ""
        raise DataError(f"{first_few(complaints, COMPLAINTS_SHOWN)}{of} {HINT}", everywhere=True)
    for images, of_list in faults:
        if len(of_list) == len(images):
            complaint = complaint_about(images.files[0], of_list[0])
            raise DataError(f"none of {len(images):,} test images can be read: {complaint}", everywhere=True)
        if of_list:
            progress.say(
                f"{len(of_list):,} of {len(images):,} test images cannot be read and will be left out "
                "(data.corrupt: skip); the evaluation names them"
            )


def _faults(
    checks: Sequence[_Check], data: Data, progress: Progress, poll: Callable[[], None]
) -> list[list[Any]]:
    """The images that cannot be used: number of the check, position in its list, and reason.

    Args:
        checks: this worker's.
        data, progress: as for :func:`check_images`.
        poll: of :func:`run_unevenly`.
    """
    progress.begin("checking images", sum(len(check.indices) for check in checks))
    found: list[list[Any]] = []
    try:
        for number, check in enumerate(checks):
            if not len(check.indices):
                continue
            find = _item_faults if check.images.encoded is None else _encoded_faults
            with closing(find(check, data, poll)) as faults:
                for index, fault in zip(check.indices.tolist(), faults, strict=True):
                    if fault is not None:
                        found.append([number, index, fault])
                    progress.step()
        return found
    finally:
        progress.end()


def _encoded_faults(check: _Check, data: Data, poll: Callable[[], None]) -> Generator[str | None, None, None]:
    """Why each image cannot be used, or None; arguments as for :func:`_faults`."""
    encoded = check.images.encoded
    assert encoded is not None

    def faults_of(read: Sequence[Read]) -> list[str | None]:
        return [
            str(one) if isinstance(one, Unusable) else find_fault(one, data.channels, decoded=check.decoded)
            for one in read
        ]

    batches = _cut(check.indices, FILES_AT_ONCE * data.threads)
    read_ahead, threads = ReadAhead(), ThreadPoolExecutor(data.threads)
    try:
        for reading in read_ahead.read(encoded, batches):
            read = list(results_in_order(reading, poll))
            parts = [read[at : at + FILES_AT_ONCE] for at in range(0, len(read), FILES_AT_ONCE)]
            for faults in results_in_order([threads.submit(faults_of, part) for part in parts], poll):
                yield from faults
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
        read_ahead.close()


def _item_faults(check: _Check, data: Data, poll: Callable[[], None]) -> Generator[str | None, None, None]:
    """As :func:`_encoded_faults`, of items of a data set, which are always decoded."""
    with closing(ItemReader(check.images, data, _fault)) as reader:
        for read in reader.read(_cut(check.indices, ITEMS_AT_ONCE), seed=0):
            poll()
            yield from (fault if isinstance(fault, str) else None for fault in read)


def _cut(indices: Indices, size: int) -> list[Indices]:
    return [indices[at : at + size] for at in range(0, len(indices), size)]


def _fault(images: Images, channels: int, place: Place) -> Stored | str:
    """Why an image cannot be read; its pixels are not sent."""
    try:
        images.decoded(place.image, channels, place.seed)
    except Unusable as reason:
        return str(reason)
    return np.empty(0, np.uint8), 0, 0
