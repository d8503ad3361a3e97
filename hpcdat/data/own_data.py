"""Data sets of the user's own: ``MODULE:CALLABLE`` makes them, and they are checked before anything is read.

The callable runs on every worker, and again in every process that reads images, so nothing has to be pickled:
transforms may be lambdas, and files may be open. It is called with the same random numbers everywhere, and
every item is read with random numbers that depend on the epoch and the item only; so data sets that draw
them from torch, NumPy or Python are the same whichever process reads them, and when a run resumes.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import IterableDataset, Subset

from hpcdat.config.sections import Data
from hpcdat.data.corrupt_images import HINT, complaint_about
from hpcdat.data.image_file import Unusable
from hpcdat.data.images import DataError, Images
from hpcdat.data.own_items import WrongItem, has_fractions, pixels_of_item, split_item
from hpcdat.data.own_labels import find_labels, labelled_items
from hpcdat.errors import HpcdatError
from hpcdat.models.random_numbers import seeded
from hpcdat.seeds import derive
from hpcdat.storage.atomic_files import digest
from hpcdat.user_code import call, describe_failure, load_callable

KEY = "data.source"
CPU = torch.device("cpu")
SPLITS = ("training", "test")
FIRST_ITEMS = 8
"""Items of each data set that are read and checked before anything else."""
ITEMS_COMPARED = 1000
"""Items whose pixels tell whether the outcomes of an earlier evaluation still hold."""


@dataclass(frozen=True)
class OwnDataSet:
    """One of the data sets that a callable makes; opened again where it is unpickled.

    Attributes:
        reference: ``MODULE:CALLABLE``.
        folders: where the module is looked for first.
        arguments: of the callable.
        split: 0 for training, 1 for test.
        single: whether the callable makes only one.
    """

    reference: str
    folders: tuple[Path, ...]
    arguments: dict[str, Any]
    split: int
    single: bool

    @cached_property
    def held(self) -> Any:
        """The user's data set."""
        return make_data_sets(self.reference, self.folders, self.arguments, single=self.single)[self.split]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "held"}

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.reference}: {SPLITS[self.split]}"

    def item(self, position: int, seed: int) -> tuple[Any, int]:
        """Image and label of an item as the user's data set returns them.

        Raises:
            Unusable: the data set fails.
            DataError: it is no pair, or its label no whole number.
        """
        with seeded(derive(seed, "item", position), CPU):
            try:
                item = self.held[position]
            except (HpcdatError, MemoryError):
                raise
            except (Exception, SystemExit) as error:
                raise Unusable(describe_failure(error)) from None
        try:
            return split_item(item)
        except WrongItem as wrong:
            raise DataError(f"{self.name} item {position}: {wrong}") from None

    def pixels(self, image: Any, position: int, channels: int) -> NDArray[np.uint8]:
        """The pixels of an item's image: (H, W, channels).

        Raises:
            Unusable: its file is damaged.
            DataError: it is no image.
        """
        try:
            return pixels_of_item(image, channels)
        except WrongItem as wrong:
            raise DataError(f"{self.name} item {position}: {wrong}") from None

    def read(self, position: int, label: int, channels: int, seed: int) -> NDArray[np.uint8]:
        """The pixels of an item; see :class:`~hpcdat.data.images.DataSet`."""
        image, found = self.item(position, seed)
        self.check_label(position, found, label)
        return self.pixels(image, position, channels)

    def check_label(self, position: int, found: int, expected: int) -> None:
        """Refuse an item with another label than that found at the start.

        Raises:
            DataError: it has.
        """
        if found != expected:
            raise DataError(
                f"{self.name} item {position} has label {found}, but `targets` or `labels` of the data set, "
                f"or the item when it was read before, says {expected}: they must agree"
            )

    def signature(self, positions: NDArray[np.int64], labels: list[int]) -> Any:
        """Name and arguments, the text of the module, and the pixels of up to ``ITEMS_COMPARED`` items."""
        count = min(len(positions), ITEMS_COMPARED)
        if count < len(positions):
            _report(
                f"{self.name} items: outcomes of an earlier evaluation are taken to hold if {count:,} of the "
                f"{len(positions):,} items and the module {self.reference.partition(':')[0]} are the same"
            )
        seen = hashlib.blake2b(digest_size=8)
        for index in np.linspace(0, len(positions) - 1, count).astype(int).tolist():
            try:
                pixels = self.read(int(positions[index]), labels[index], 3, 0)
            except Unusable:
                seen.update(b"unreadable")
                continue
            seen.update(str(pixels.shape).encode() + pixels.tobytes())
        arguments = {name: value for name, value in self.arguments.items() if name != "root"}
        return [self.reference, arguments, len(self.held), self._text(), seen.hexdigest()]

    def _text(self) -> str:
        """A hash of the module's file; empty if there is none."""
        module = inspect.getmodule(load_callable(KEY, self.reference, self.folders))
        file = getattr(module, "__file__", None)
        return digest(Path(file).read_bytes().hex()) if file and file.endswith(".py") else ""


def find_own(settings: Data, folders: Sequence[Path], *, quiet: bool) -> tuple[Images, Images]:
    """The training and the test images of data sets that a callable makes.

    Args:
        settings: the job's ``data`` section.
        folders: where its module is looked for first.
        quiet: print nothing.

    Raises:
        InputError: the callable cannot be imported or fails.
        DataError: what it returns, or one of the items that are checked, is not as it should be.
    """
    single = settings.test_fraction is not None
    arguments = ({} if settings.root is None else {"root": settings.root}) | settings.options
    made = make_data_sets(settings.source, folders, arguments, single=single)
    sources, first = [], []
    for split, held in enumerate(made):
        source = OwnDataSet(settings.source, tuple(folders), arguments, split, single)
        vars(source)["held"] = held
        sources.append(source)
        first.append(_check_first_items(source, settings, quiet=quiet))
    classes = _classes(sources)
    labels = [
        find_labels(source.held, source.name, partial(_label, source), settings, quiet) for source in sources
    ]
    for source, known, of_split in zip(sources, first, labels, strict=True):
        for position, label in known.items():
            source.check_label(position, label, of_split[position])
    names = classes or [str(number) for number in range(max(labels[0].values(), default=0) + 1)]
    images = [
        labelled_items(
            source, source.name, of_split, names, named=classes is not None, training=not source.split
        )
        for source, of_split in zip(sources, labels, strict=True)
    ]
    if settings.test_fraction is not None:
        return images[0].split_off(settings.test_fraction, settings.test_seed)
    return images[0], images[1]


def make_data_sets(
    reference: str, folders: Sequence[Path], arguments: dict[str, Any], *, single: bool
) -> list[Any]:
    """Call the user's callable, with the same random numbers every time, and check what it returns.

    Args:
        reference: ``MODULE:CALLABLE``.
        folders: where the module is looked for first.
        arguments: of the callable, by name.
        single: whether it should return one data set, not two.

    Raises:
        InputError: it cannot be imported or fails.
        DataError: it returns something else, or an empty data set.
    """
    function = load_callable(KEY, reference, folders)
    with seeded(derive(0, "data sets"), CPU):
        made = call(KEY, reference, function, **arguments)
    if single:
        if isinstance(made, tuple):
            raise DataError(
                f"{KEY}: {reference} returned {len(made)} values; expected one data set, as "
                "data.test_fraction takes the test images from it"
            )
        made = [made]
    elif not isinstance(made, tuple | list) or len(made) != 2:
        what = f"{len(made)} values" if isinstance(made, tuple | list) else f"a {type(made).__name__}"
        raise DataError(
            f"{KEY}: {reference} returned {what}; expected two data sets, for training and test (of a single "
            "one, data.test_fraction: 0.2 takes a fifth for the test)"
        )
    for split, held in zip(SPLITS, made, strict=False):
        _check_kind(held, f"{KEY}: {reference}: the {split} data")
    return list(made)


def _check_kind(held: Any, what: str) -> None:
    """Refuse what is no map-style data set with items."""
    if isinstance(held, IterableDataset):
        raise DataError(
            f"{what} are iterable-style ({type(held).__name__}); expected a map-style data set, with "
            "__getitem__ and __len__, as images are read in any order"
        )
    for method in ("__getitem__", "__len__"):
        if not hasattr(held, method):
            raise DataError(
                f"{what} are of type {type(held).__name__}, which has no {method}; expected a map-style data "
                "set, with __getitem__ and __len__"
            )
    try:
        count = len(held)
    except Exception as error:
        raise DataError(f"{what} have no length: {describe_failure(error)}") from None
    if not count:
        raise DataError(f"{what} are empty")


def _check_first_items(source: OwnDataSet, settings: Data, *, quiet: bool) -> dict[int, int]:
    """Read the first items, twice each.

    Returns:
        The labels of those that can be read, by position.

    Raises:
        DataError: an item is of the wrong kind; it cannot be read, and the job does not say to skip it; or it
            is not the same when it is read again with the same random numbers.
    """
    rounded, labels = False, {}
    for position in range(min(FIRST_ITEMS, len(source.held))):
        try:
            (image, label), (second, again) = (source.item(position, 0) for _ in range(2))
            pixels, others = (source.pixels(each, position, settings.channels) for each in (image, second))
        except Unusable as reason:
            if settings.corrupt == "stop":
                raise DataError(
                    f"{complaint_about(f'{source.name} item {position}', reason)} {HINT}"
                ) from None
            continue
        if label != again or not np.array_equal(pixels, others):
            raise DataError(
                f"{source.name} item {position} differs when it is read again with the same random numbers, "
                "so no run could resume: draw them from torch, numpy.random or random themselves, not from a "
                "generator of the data set"
            )
        labels[position] = label
        rounded = rounded or has_fractions(image)
    if rounded and not quiet:
        _report(f"{source.name} items are floats: they are rounded to 8 bits, multiples of 1/255")
    return labels


def _classes(sources: Sequence[OwnDataSet]) -> list[str] | None:
    """Names of the classes, of the data sets that have some.

    Raises:
        DataError: they differ, or are no list of two or more different names.
    """
    found = [_base(source.held, "classes") for source in sources]
    named = [classes for classes in found if classes is not None and not callable(classes)]
    lists = []
    for classes in named:
        try:
            lists.append([str(name) for name in classes])
        except TypeError:
            raise DataError(
                f"{sources[0].reference}: `classes` is a {type(classes).__name__}; expected a list of names"
            ) from None
    if len(lists) == 2 and lists[0] != lists[1]:
        raise DataError(
            f"{sources[0].reference}: training and test data have different `classes`: "
            f"{len(lists[0])} and {len(lists[1])} names, or in another order"
        )
    if lists and len(set(lists[0])) < len(lists[0]):
        raise DataError(f"{sources[0].reference}: a name is twice in `classes`")
    return lists[0] if lists else None


def _base(held: Any, name: str) -> Any:
    """An attribute of a data set, or of that which it is a part of."""
    while isinstance(held, Subset) and not hasattr(held, name):
        held = held.dataset
    return getattr(held, name, None)


def _label(source: OwnDataSet, position: int) -> int:
    return source.item(position, 0)[1]


def _report(line: str) -> None:
    print(f"hpcdat: {line}", file=sys.stderr, flush=True)
