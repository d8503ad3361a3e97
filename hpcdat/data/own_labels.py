"""Labels of a data set: taken from it, or read with all of its items; and what they must be like."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Subset

from hpcdat.config.sections import Data
from hpcdat.data.corrupt_images import HINT, complaint_about
from hpcdat.data.image_file import Unusable
from hpcdat.data.images import DataError, DataSet, Images, Items
from hpcdat.distributed.stop_signals import installed_stop_request
from hpcdat.errors import Stopped
from hpcdat.progress import Progress


def find_labels(
    held: Any, name: str, label_of: Callable[[int], int], settings: Data, quiet: bool
) -> dict[int, int]:
    """The label of each item, by its position.

    They are those of ``targets``, which torchvision's data sets have, or of ``labels``. Where there are none,
    all items are read.

    Args:
        held: the user's data set.
        name: its name in messages.
        label_of: reads the label of an item.
        settings: the job's ``data`` section; with ``corrupt: skip``, items that cannot be read are left out.
        quiet: print nothing.

    Raises:
        DataError: ``targets`` are not one whole number for each item, an item cannot be read, or all are
            left out.
        Stopped: a stop was requested.
    """
    labels = _attribute(held, name)
    if labels is not None:
        return dict(enumerate(labels.tolist()))
    progress = Progress(shown=not quiet)
    progress.say(
        f"{name} data: reading all {len(held):,} items for their labels; give the data set an attribute "
        "`targets`, a list of them, to avoid this"
    )
    stop = installed_stop_request()
    found: dict[int, int] = {}
    progress.begin("reading labels", len(held))
    try:
        for position in range(len(held)):
            if stop is not None and stop.requested:
                raise Stopped("stopped while reading labels; the same command resumes")
            try:
                found[position] = label_of(position)
            except Unusable as reason:
                complaint = complaint_about(f"{name} item {position}", reason)
                if settings.corrupt == "stop":
                    raise DataError(f"{complaint} {HINT}") from None
                if not quiet:
                    print(f"hpcdat: {complaint}; it is left out", file=sys.stderr, flush=True)
            progress.step()
    finally:
        progress.end()
    if not found:
        raise DataError(f"{name} data: none of {len(held):,} items can be read")
    return found


def labelled_items(
    data_set: DataSet, name: str, labels: dict[int, int], classes: list[str], *, named: bool, training: bool
) -> Images:
    """The items of a data set that have labels.

    Args:
        data_set: holds them.
        name: its name in messages.
        labels: of items, by position.
        classes: names of the classes.
        named: whether the data set named them; else they are as many as the training labels need.
        training: whether these are the training images.

    Raises:
        DataError: a label is out of range, there are fewer than two classes, or, if they are not named, one
            without training images.
    """
    if len(classes) < 2:
        for position, label in labels.items():
            if label < 0:
                raise DataError(f"{name} item {position} has label {label}; expected 0 or more")
        raise DataError(f"{name} data have a single class; expected two or more")
    for position, label in labels.items():
        if not 0 <= label < len(classes):
            known = f"the data set names {len(classes)} classes" if named else "the training labels end there"
            raise DataError(
                f"{name} item {position} has label {label}; expected 0 to {len(classes) - 1} ({known})"
            )
    if training and not named and (unused := set(range(len(classes))) - set(labels.values())):
        raise DataError(
            f"{name} data: no item has label {min(unused)}; expected 0 to {len(classes) - 1}, each of some "
            "item, or a data set that names all classes (`classes`)"
        )
    positions = np.array(list(labels), dtype=np.int64)
    files = [f"{name} item {position}" for position in labels]
    return Images(files, np.array(list(labels.values())), classes, items=Items(data_set, positions))


def _attribute(held: Any, name: str) -> NDArray[np.int64] | None:
    """The labels that a data set has itself, or of which it is a part."""
    targets = getattr(held, "targets", None)
    if targets is not None and not callable(targets):
        labels = _whole_numbers(targets)
        if labels is None or len(labels) != len(held):
            raise DataError(
                f"{name} data: `targets` is {_describe(targets)}; expected a list, array or tensor of "
                f"{len(held):,} whole numbers, the label of each item"
            )
        return labels
    # Other data sets have names of classes, or several labels for each item, in it.
    labels = _whole_numbers(getattr(held, "labels", None))
    if labels is not None and len(labels) == len(held):
        return labels
    if isinstance(held, Subset) and (labels := _attribute(held.dataset, name)) is not None:
        return labels[np.asarray(held.indices, dtype=np.int64)]
    return None


def _whole_numbers(value: Any) -> NDArray[np.int64] | None:
    if not isinstance(value, list | tuple | np.ndarray | torch.Tensor):
        return None
    try:
        array = np.asarray(value.cpu() if isinstance(value, torch.Tensor) else value)
    except (ValueError, TypeError, RuntimeError):
        return None
    return array.astype(np.int64) if array.ndim == 1 and array.dtype.kind in "iu" else None


def _describe(value: Any) -> str:
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is not None:
        return f"a {type(value).__name__} of shape {tuple(shape)}, {dtype}"
    count = f" of {len(value):,}" if hasattr(value, "__len__") else ""
    kinds = sorted({type(each).__name__ for each in value}) if isinstance(value, list | tuple) else []
    return f"a {type(value).__name__}{count}" + (f" ({', '.join(kinds[:3])})" if kinds else "")
