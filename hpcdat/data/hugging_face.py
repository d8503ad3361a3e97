"""Data sets that Hugging Face's library ``datasets`` reads: image folders, Parquet files, saved data sets.

Images are taken as they are stored and decoded as those of files are, so that the same files give the same
pixels. No code of a data set is ever run, and without ``download`` nothing on the network is asked for.
"""

from __future__ import annotations

import hashlib
import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from hpcdat.config.sections import Data
from hpcdat.data.image_file import Contents, Unusable, inspect, read_bytes
from hpcdat.data.images import DataError, Images
from hpcdat.data.own_labels import labelled_items
from hpcdat.distributed.stop_signals import installed_stop_request
from hpcdat.distributed.waiting import Wait, wait_in_thread
from hpcdat.errors import HpcdatError, InputError, first_few, first_line

FORMATS = {"imagefolder": "image folders", "parquet": "Parquet files", "arrow": "Arrow files"}
"""Modules of the library that read images, by what they read."""
SAVED = {"dataset_dict.json", "state.json"}
"""Files of a folder that ``save_to_disk`` has written: of several splits, or of one."""
SECONDS_TO_PREPARE = 6 * 3600
"""How long a worker waits until the library has copied (or fetched) all images."""
ITEMS_COMPARED = 1000
"""Items whose bytes tell, with the library's fingerprint, whether outcomes of an evaluation still hold."""


@dataclass(frozen=True)
class HuggingFaceDataSet:
    """One split.

    Attributes:
        rows: the library's data set, its images not decoded.
        column: that of the images.
    """

    rows: Any
    column: str

    def read(self, position: int, label: int, channels: int, seed: int) -> Contents:
        """The image of a row, encoded; see :class:`~hpcdat.data.images.DataSet`."""
        stored = self.rows[position][self.column] or {}
        if stored.get("bytes"):
            return inspect(stored["bytes"])
        if stored.get("path"):
            return inspect(read_bytes(stored["path"]))
        raise Unusable("found no image")

    def signature(self, positions: NDArray[np.int64], labels: list[int]) -> Any:
        """The library's fingerprint, and the bytes of up to ``ITEMS_COMPARED`` images."""
        seen = hashlib.blake2b(digest_size=8)
        count = min(len(positions), ITEMS_COMPARED)
        for index in np.linspace(0, len(positions) - 1, count).astype(int).tolist():
            try:
                seen.update(self.read(int(positions[index]), 0, 3, 0).encoded)
            except Unusable:
                seen.update(b"unreadable")
        return [self.rows._fingerprint, self.column, len(self.rows), seen.hexdigest()]


def find_hugging_face(settings: Data, *, quiet: bool) -> tuple[Images, Images]:
    """The training and the test images of ``data.source: huggingface``.

    Args:
        settings: the job's ``data`` section.
        quiet: show no progress.

    Raises:
        InputError: the library is missing, or cannot read the data set.
        DataError: there is no such split, no column of images or labels, or a label is not as it should be.
    """
    library = _library(settings, quiet=quiet)
    name = settings.hub or str(settings.root)
    wanted = [settings.train] if settings.test_fraction else [settings.train, settings.test]
    split_of = _opened(library, settings, name, wanted)
    found = []
    for split in wanted:
        rows = split_of(split)
        if not len(rows):
            raise DataError(f"{name}: split {split} is empty")
        column, label = _columns(library, rows.features, settings, name)
        classes = getattr(rows.features[label], "names", None)
        labels = rows.with_format(None).select_columns([label])[:][label]
        if None in labels:
            raise DataError(f"{name}: {split} item {labels.index(None)} has no label")
        images_only = rows.select_columns([column]).cast_column(column, library.Image(decode=False))
        found.append((split, HuggingFaceDataSet(images_only, column), labels, classes))
    classes = found[0][3]
    if any(other != classes for *_, other in found):
        raise DataError(f"{name}: splits {' and '.join(wanted)} have different classes")
    names = classes or [str(number) for number in range(max(found[0][2]) + 1)]
    short = Path(name).name
    images = [
        labelled_items(
            data_set,
            f"{short}: {split}",
            dict(enumerate(labels)),
            names,
            named=classes is not None,
            training=split == wanted[0],
        )
        for split, data_set, labels, _ in found
    ]
    if settings.test_fraction:
        return images[0].split_off(settings.test_fraction, settings.test_seed)
    return images[0], images[1]


def _library(settings: Data, *, quiet: bool) -> Any:
    """The library, which asks for nothing on the network unless the job says so."""
    if not settings.download:
        # Read when the library is imported, here or in processes that read images.
        os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    try:
        library, hub = importlib.import_module("datasets"), importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise InputError(
            f"data.source: huggingface needs the library datasets: pip install 'datasets>=4' "
            f"({first_line(error)})"
        ) from None
    if not settings.download:
        # It may have been imported before.
        library.config.HF_HUB_OFFLINE = hub.constants.HF_HUB_OFFLINE = True
    library.logging.set_verbosity_error()
    if quiet:
        library.disable_progress_bars()
    return library


def _opened(library: Any, settings: Data, name: str, wanted: list[str]) -> Callable[[str], Any]:
    """Open a data set; the result returns a split by its name."""
    root = settings.root
    if settings.hub is None and root is not None and not root.is_dir():
        raise DataError(f"{root}: no such folder; expected image folders, Parquet files or a saved data set")
    try:
        if settings.hub is None and root is not None and any((root / file).is_file() for file in SAVED):
            saved = library.load_from_disk(str(root))
            splits = saved if isinstance(saved, library.DatasetDict) else {str(saved.split or "train"): saved}
            _check_splits(name, wanted, list(splits))
            return lambda split: splits[split]
        cache = {"cache_dir": str(root)} if settings.hub and root else {}
        builder = library.load_dataset_builder(name, **cache)
        kind = type(builder).__module__.split(".")[-1]
        if kind not in FORMATS:
            raise DataError(f"{name}: found data of the kind {kind}; accepted are {_formats()}")
        what = f"the library datasets to prepare {name}, by this worker or another"
        wait = Wait(what, installed_stop_request(), longest=SECONDS_TO_PREPARE)
        wait_in_thread(builder.download_and_prepare, wait)
        _check_splits(name, wanted, list(builder.info.splits))
        return lambda split: builder.as_dataset(split=split)
    except HpcdatError:
        raise
    except Exception as error:
        # The library's readers raise errors of many kinds.
        _refuse(settings, name, error)


def _refuse(settings: Data, name: str, error: Exception) -> NoReturn:
    hint = ""
    if settings.hub and not settings.download:
        hint = "; data.download: true fetches it from the Hugging Face Hub"
    elif settings.hub is None:
        hint = f"; accepted are {_formats()}"
    reason = f"{type(error).__name__}: {first_line(error)}"
    raise InputError(f"{name}: the library datasets cannot read it: {reason}{hint}") from None


def _formats() -> str:
    return f"{', '.join(FORMATS.values())} and data sets of save_to_disk"


def _check_splits(name: str, wanted: list[str], found: list[str]) -> None:
    for key, split in zip(("data.train", "data.test"), wanted, strict=False):
        if split not in found:
            fraction = ", or data.test_fraction" if key == "data.test" else ""
            raise DataError(
                f"{name}: has no split {split}, only {first_few(found)}: set {key} to one of them{fraction}"
            )


def _columns(library: Any, features: Any, settings: Data, name: str) -> tuple[str, str]:
    """The columns of images and of labels."""
    images = [key for key, kind in features.items() if isinstance(kind, library.Image)]
    # Files that other programs wrote hold the same without saying that it is an image.
    images = images or [key for key, kind in features.items() if isinstance(kind, dict) and "bytes" in kind]
    labels = [key for key, kind in features.items() if isinstance(kind, library.ClassLabel)]
    whole = [
        key for key, kind in features.items() if str(getattr(kind, "dtype", "")).startswith(("int", "uint"))
    ]
    labels = labels or [key for key in whole if key == "label"] or whole
    columns = [
        _column("data.image_column", settings.image_column, images, features, "images", name),
        _column("data.label_column", settings.label_column, labels, features, "labels", name),
    ]
    if columns[1] not in whole:
        kind = getattr(features[columns[1]], "dtype", type(features[columns[1]]).__name__)
        raise DataError(
            f"{name}: data.label_column: {columns[1]} holds {kind}; expected whole numbers or class labels"
        )
    if columns[0] not in images:
        raise DataError(f"{name}: data.image_column: {columns[0]} holds no images")
    return columns[0], columns[1]


def _column(key: str, given: str | None, found: list[str], features: Any, what: str, name: str) -> str:
    if given is not None:
        if given not in features:
            raise DataError(f"{name}: {key}: there is no column {given}, only {first_few(list(features))}")
        return given
    if len(found) == 1:
        return found[0]
    many = f"several columns may be the {what}: {first_few(found)}" if found else f"no column holds {what}"
    columns = "" if found else f" (its columns: {first_few(list(features))})"
    raise DataError(f"{name}: {many}{columns}; set {key} to the right one")
