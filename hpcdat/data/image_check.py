"""Check images before training starts, so that a file that cannot be read is not found hours later.

All test and held-out images are checked, since an evaluation at the end of a run is the first to read them;
they are decoded as well, unless there are very many.
Training images are checked whenever they are read, with the bytes that are read anyway; before training
starts, only a sample of them, since reading all of 1.28 million would delay every start, and many mistakes
affect many files. The workers divide the files among themselves: of ImageNet's 50,000 test images, 6.7 GB,
each of 36 workers reads 190 MB. A run that resumes checks nothing again.

Items of data sets are checked in the same way, but always read as a loader reads them, and of very many test
items only a sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from functools import partial

import numpy as np

from hpcdat.config.sections import Data
from hpcdat.data.corrupt_images import HINT, complaint_about
from hpcdat.data.image_file import Unusable, find_fault
from hpcdat.data.images import DataError, Images
from hpcdat.data.item_reader import ItemReader, Place, Stored
from hpcdat.distributed.communicator import Communicator
from hpcdat.distributed.stop_signals import StopRequest
from hpcdat.distributed.uneven_work import run_unevenly
from hpcdat.errors import first_few
from hpcdat.progress import Progress

TRAINING_IMAGES_CHECKED = 2000
"""Training images that each worker checks."""

IMAGES_DECODED = 2000
"""Test images a worker up to which they are decoded; of more, JPEG and PNG only to their end markers, and of
more items a sample of so many."""

ITEMS_AT_ONCE = 16
"""Items that a process reads before it reports."""

MANY = 5000
"""Images of a check that is announced, since it may take more than some seconds."""

COMPLAINTS_SHOWN = 3
"""Images that an error message names."""

SECONDS_BETWEEN_POLLS = 0.25
"""How often a worker that waits for a file notices a stop request."""


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
    lists = list({id(images): images for images in evaluated if images.pixels is None}.values())
    places: dict[str, tuple[Images, int]] = {}
    if data.corrupt == "stop" and train.pixels is None:
        places |= _sample(train, TRAINING_IMAGES_CHECKED * workers.size)
    for images in lists:
        places |= _sample(images, len(images) if images.items is None else IMAGES_DECODED * workers.size)
    files = list(places)
    if not files:
        return
    if len(files) > MANY:
        progress.say(f"checking {len(files):,} images before training starts")
    share = files[workers.rank :: workers.size]
    if train.items is not None:
        of_items = [places[file] for file in share]
        work = partial(_item_faults, of_items, data, progress)
    else:
        tested = {file for images in lists for file in images.files}
        decoded = tested if len(tested) <= IMAGES_DECODED * workers.size else set()
        work = partial(_faults, {file: file in decoded for file in share}, data, progress)
    found = run_unevenly(workers, "check the images", work, stop)
    every = workers.gather_object(found, "images that cannot be read")
    faults = {file: fault for of_worker in every for file, fault in of_worker.items()}
    faults = workers.broadcast_object(faults, "all images that cannot be read")
    if faults:
        _conclude({file: faults[file] for file in files if file in faults}, len(files), lists, data, progress)


def _sample(images: Images, most: int) -> dict[str, tuple[Images, int]]:
    """Images by their names: all of them or as many, evenly spaced, so that they are of every class."""
    indices = np.linspace(0, len(images), min(len(images), most), endpoint=False).astype(int).tolist()
    return {images.files[index]: (images, index) for index in indices}


def _conclude(
    faults: dict[str, str], checked: int, lists: Sequence[Images], data: Data, progress: Progress
) -> None:
    """Report images that cannot be read, or raise an error on all workers."""
    if data.corrupt == "stop":
        complaints = [complaint_about(file, fault) for file, fault in faults.items()]
        of = f" of {checked:,} images checked before training" if len(complaints) > COMPLAINTS_SHOWN else ""
        raise DataError(f"{first_few(complaints, COMPLAINTS_SHOWN)}{of} {HINT}", everywhere=True)
    for images in lists:
        bad = [file for file in images.files if file in faults]
        if len(bad) == len(images):
            complaint = complaint_about(bad[0], faults[bad[0]])
            raise DataError(f"none of {len(bad):,} test images can be read: {complaint}", everywhere=True)
        if bad:
            progress.say(
                f"{len(bad):,} of {len(images):,} test images cannot be read and will be left out "
                "(data.corrupt: skip); the evaluation names them"
            )


def _faults(
    files: dict[str, bool], data: Data, progress: Progress, poll: Callable[[], None]
) -> dict[str, str]:
    """The files that cannot be used, with the reason for each.

    Args:
        files: whether each is to be decoded.
        data, progress: as for :func:`check_images`.
        poll: of :func:`run_unevenly`.
    """
    progress.begin("checking images", len(files))
    threads = ThreadPoolExecutor(data.threads)
    try:
        futures = [
            threads.submit(find_fault, file, data.channels, decoded=decoded)
            for file, decoded in files.items()
        ]
        faults = {}
        for file, fault in zip(files, _results(futures, poll), strict=True):
            if fault is not None:
                faults[file] = fault
            progress.step()
        return faults
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
        progress.end()


def _item_faults(
    items: Sequence[tuple[Images, int]], data: Data, progress: Progress, poll: Callable[[], None]
) -> dict[str, str]:
    """The items that cannot be used, by name, with the reason for each; arguments as for :func:`_faults`."""
    progress.begin("checking items", len(items))
    faults = {}
    try:
        for images in {id(images): images for images, _ in items}.values():
            indices = np.array([index for of, index in items if of is images], dtype=np.int64)
            batches = [indices[at : at + ITEMS_AT_ONCE] for at in range(0, len(indices), ITEMS_AT_ONCE)]
            with closing(ItemReader(images, data, _fault)) as reader:
                for batch, read in zip(batches, reader.read(batches, seed=0), strict=True):
                    poll()
                    for index, fault in zip(batch.tolist(), read, strict=True):
                        if isinstance(fault, str):
                            faults[images.files[index]] = fault
                        progress.step()
    finally:
        progress.end()
    return faults


def _fault(images: Images, channels: int, place: Place) -> Stored | str:
    """Why an image cannot be read; its pixels are not sent."""
    try:
        images.decoded(place.image, channels, place.seed)
    except Unusable as reason:
        return str(reason)
    return np.empty(0, np.uint8), 0, 0


def _results(futures: Sequence[Future[str | None]], poll: Callable[[], None]) -> Iterator[str | None]:
    """The results in order, with a poll before each, and while it is awaited."""
    for future in futures:
        poll()
        while not wait([future], SECONDS_BETWEEN_POLLS).done:
            poll()
        yield future.result()
