"""Folders of images: one sub-folder a class; what is no image of a class is left out and reported."""

from __future__ import annotations

import os
from collections import Counter
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS

from hpcdat.data.encoded_images import Files
from hpcdat.data.images import DataError, Images
from hpcdat.errors import first_few

IMAGE_SUFFIXES = (*IMG_EXTENSIONS, ".gif", ".jfif", ".jpe")
"""Endings of the names of images, in lower case; what a file holds is decided by its content."""

SIDECAR_FOLDERS = {"@eadir", "@recycle", "#recycle", "#snapshot", "$recycle.bin", "__macosx", "lost+found"}
"""Folders that storage systems and archives add (lower case); hidden folders are treated alike."""

THUMBNAIL_FOLDERS = {"thumbs", "_thumbs", "thumbnails", "_thumbnails"}
"""Folders of thumbnails inside a class; next to the classes, one of these may be a class."""

SIDECAR_FILES = {"thumbs.db", "desktop.ini"}
"""Files that are left out without a report, as are hidden files that are not named like images."""

MOST_COUNTED = 10_000
"""Images that are counted in a folder that is left out; snapshots can be very large."""

DEEPEST_CLASSES = 4
"""How many levels too high the folder of the classes may be for a message to say where they are."""

SPLITS = {"train", "training", "test", "testing", "val", "valid", "validation"}
"""Names of folders that hold classes and are none themselves."""


class FolderScan:
    """Lists images below folders; each real folder is entered once, through any number of links.

    Attributes:
        owners: for each real folder, the class it belongs to and the path it was entered by.
        names: what was left out: names of folders and endings of files, by kind.
        counts: how many images or files were left out, by kind.
    """

    def __init__(self) -> None:
        self.owners: dict[str, tuple[str, str]] = {}
        self.names: dict[str, set[str]] = {}
        self.counts: Counter[str] = Counter()

    def files_below(self, folder: Path, owner: str) -> list[str]:
        """The images in a folder and below it, sorted by folder, then by name.

        Args:
            folder: through links, too: data sets are often made of them.
            owner: class that they belong to.

        Raises:
            DataError: a link leads to a folder of another class.
            OSError: a folder cannot be read.
        """
        found: list[tuple[str, list[str]]] = []
        pending = [(str(folder), os.path.realpath(folder))]
        while pending:
            at, real = pending.pop()
            if real in self.owners:
                self._check_owner(at, owner, *self.owners[real])
                continue
            self.owners[real] = (owner, at)
            below, files = [], []
            with os.scandir(at) as entries:
                for entry in entries:
                    if not entry.is_dir():
                        files.append(entry)
                    elif _is_sidecar(entry.name) or entry.name.lower() in THUMBNAIL_FOLDERS:
                        self.leave_out_folder(entry)
                    else:
                        below.append(entry)
            # In this order on all nodes, so that all enter a folder by the same one of its names.
            for entry in sorted(below, key=lambda entry: entry.name, reverse=True):
                target = os.path.realpath(entry.path) if entry.is_symlink() else f"{real}/{entry.name}"
                pending.append((entry.path, target))
            found.append((at, sorted(entry.name for entry in files if self._is_image(entry))))
        return [f"{at}/{name}" for at, names in sorted(found) for name in names]

    def leave_out_folder(self, entry: os.DirEntry[str]) -> None:
        """Count the images of a folder that holds thumbnails, copies or other data."""
        images = (name for _, _, names in os.walk(entry.path) for name in names if _is_named_image(name))
        if count := sum(1 for _ in islice(images, MOST_COUNTED)):
            self._leave_out("images in hidden folders or folders of thumbnails", entry.name, count)

    def leave_out_stray(self, name: str) -> None:
        """Count an image that lies next to the folders of the classes."""
        if _is_named_image(name) and not name.startswith("."):
            self._leave_out("images outside the folders of the classes", name)

    def report(self) -> str:
        """What was left out, in one line; empty if nothing was."""
        parts = [
            f"{kind}: {self.counts[kind]:,} ({first_few(sorted(names), 4)})"
            for kind, names in self.names.items()
        ]
        return "; ".join(parts)

    def _is_image(self, entry: os.DirEntry[str]) -> bool:
        """Whether a file is listed; others are counted."""
        if entry.name.startswith("."):
            if _is_named_image(entry.name):
                self._leave_out("hidden files", entry.name)
            return False
        if not _is_named_image(entry.name):
            if entry.name.lower() not in SIDECAR_FILES:
                suffix = Path(entry.name).suffix.lower()
                self._leave_out("files without the name of an image", suffix or entry.name)
            return False
        # A link may lead nowhere, which is reported when the image is read. Reading a pipe would block.
        if not (entry.is_file() or entry.is_symlink()):
            self._leave_out("pipes, sockets and devices", entry.name)
            return False
        return True

    def _leave_out(self, kind: str, name: str, count: int = 1) -> None:
        self.names.setdefault(kind, set()).add(name)
        self.counts[kind] += count

    @staticmethod
    def _check_owner(at: str, owner: str, other: str, entered_by: str) -> None:
        if owner != other:
            raise DataError(
                f"{entered_by} and {at} are the same folder, through a link: its images would be in two "
                f"classes, {other} and {owner}; remove the link"
            )


class Listing(NamedTuple):
    """A folder that has been listed.

    Attributes:
        images: of all classes.
        folders: the real folders that hold them.
        left_out: what was left out, in one line; empty if nothing was.
    """

    images: Images
    folders: set[str]
    left_out: str


def find_classes(folder: Path) -> list[str]:
    """The names of the classes in a folder, sorted; hidden folders and those of storage systems are none.

    Raises:
        OSError: the folder cannot be read.
    """
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not _is_sidecar(entry.name))


def list_images(folder: Path, classes: list[str] | None = None) -> Images:
    """The images of :func:`list_folder`."""
    return list_folder(folder, classes).images


def list_folder(folder: Path, classes: list[str] | None = None) -> Listing:
    """List a folder that holds one sub-folder a class.

    Images are those of torchvision's ImageFolder, in its order, without hidden files, thumbnails, and folders
    that were already listed; GIF files are among them.

    Args:
        folder: holds the classes.
        classes: the classes that are expected, or None to take those found.

    Raises:
        DataError: no such folder, one class or none, an empty class, other classes than expected, or a folder
            that belongs to two classes.
    """
    try:
        found = find_classes(folder)
        _check_classes(folder, found, classes)
        scan = FolderScan()
        # Packed class by class, so that no list of a million strings is made.
        sizes, files = [], []
        for name in found:
            of_class = scan.files_below(folder / name, name)
            sizes.append(len(of_class))
            files.append(Files.of(of_class))
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.is_dir():
                    scan.leave_out_stray(entry.name)
                elif _is_sidecar(entry.name):
                    scan.leave_out_folder(entry)
    except FileNotFoundError as error:
        raise DataError(f"{folder}: {error.strerror}. {_expected(folder)}") from None
    except OSError as error:
        raise DataError(f"{error.filename or folder}: {error.strerror or error}") from None
    if empty := [name for name, size in zip(found, sizes, strict=True) if not size]:
        left_out = f" (left out: {scan.report()})" if scan.report() else ""
        raise DataError(
            f"{folder}: classes without images: {first_few(empty)}{left_out}; expected files that end in "
            f"{', '.join(IMAGE_SUFFIXES)}"
        )
    images = Images(Files.joined(files), np.repeat(np.arange(len(found)), sizes), found)
    return Listing(images, set(scan.owners), scan.report())


def _check_classes(folder: Path, found: list[str], expected: list[str] | None) -> None:
    """Refuse folders that are not the classes."""
    if not found:
        raise DataError(f"{folder}: holds no folders, one for each class. {_expected(folder)}")
    if len(found) == 1:
        raise DataError(f"{folder}: holds a single class, {found[0]}; {_one_level_down(folder, found[0])}")
    if SPLITS.issuperset(name.lower() for name in found):
        raise DataError(
            f"{folder}: its folders {first_few(found)} look like splits, not like classes: set data.train "
            "and data.test to those folders, as paths below data.root"
        )
    if expected is not None and found != expected:
        different = sorted(set(found) ^ set(expected))
        raise DataError(f"{folder}: other classes than in training: {first_few(different)}")


def _one_level_down(folder: Path, only: str) -> str:
    """Where the classes seem to be, if a folder holds a single one."""
    below, names = folder / only, find_classes(folder / only)
    for _ in range(DEEPEST_CLASSES):
        if len(names) == 1:
            below /= names[0]
            names = find_classes(below)
    if len(names) < 2:
        return "expected two or more folders, one for each class"
    return (
        f"the folders in {below} seem to be the classes ({first_few(names)}): set data.train (or data.test) "
        "to that folder, as a path below data.root"
    )


def _expected(folder: Path) -> str:
    """What a folder should hold, and where such a folder seems to be."""
    text = f"Expected {folder.name}/CLASS/*.jpg (or png, ...) in data.root"
    root = folder.parent
    with suppress(OSError):
        for place in (root.parent, *sorted(root.iterdir())):
            if (place / folder.name).is_dir() and place != root:
                return f"{text}; there is one in {place}: set data.root to it"
    return text


def files_below(folder: Path) -> tuple[list[str], str]:
    """All images in a folder and below it, sorted, and what was left out in one line."""
    scan = FolderScan()
    return sorted(scan.files_below(folder, "")), scan.report()


def _is_sidecar(name: str) -> bool:
    return name.startswith(".") or name.lower() in SIDECAR_FOLDERS


def _is_named_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES)
