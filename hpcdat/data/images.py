"""A folder of images, one sub-folder a class."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset

from hpcdat.errors import InputError


class DataError(InputError):
    """Images that are not there or cannot be read; the message names them."""


@dataclass(frozen=True)
class Images:
    """The images of one split.

    Attributes:
        files: their paths, sorted within each class.
        labels: their classes, positions in ``classes``.
        classes: names of the classes, sorted.
    """

    files: list[str]
    labels: list[int]
    classes: list[str]

    def __len__(self) -> int:
        return len(self.files)


def list_images(folder: Path, classes: list[str] | None = None) -> Images:
    """List a folder as torchvision's ImageFolder does.

    Args:
        folder: holds one sub-folder a class.
        classes: the classes that are expected, or None to take those found.

    Raises:
        DataError: no such folder, no class, an empty class, or other classes than expected.
    """
    try:
        found, positions = find_classes(folder)
        if classes is not None and found != classes:
            different = sorted(set(found) ^ set(classes))
            raise DataError(f"{folder}: other classes than in training: {', '.join(different[:5])}")
        samples = make_dataset(str(folder), positions, extensions=IMG_EXTENSIONS)
    except FileNotFoundError as error:
        raise DataError(
            f"{folder}: {error.strerror or error}. Expected {folder.name}/CLASS/*.jpg (or png, ...) "
            "in data.root"
        ) from None
    except OSError as error:
        raise DataError(f"{folder}: {error.strerror or error}") from None
    files, labels = zip(*samples, strict=True)
    return Images(list(files), list(labels), found)
