"""Images without labels of their own: found, given a model's labels, stored in a file, and read from it.

Sources: DAT, Sec. 3, case 2; Carmon et al. 2019, whose 500,000 pseudo-labelled images are a Python pickle.
Nothing but arrays is ever unpickled.
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from hpcdat.data.encoded_images import Files
from hpcdat.data.image_folder import IMAGE_SUFFIXES, files_below
from hpcdat.data.images import DataError, Images
from hpcdat.data.safe_pickle import read_arrays
from hpcdat.storage.atomic_files import write_atomically

PICKLED = ("data", "extrapolated_targets")
"""Names of images and labels in Carmon et al.'s file."""


def find_unlabelled(source: Path, classes: list[str], channels: int, *, quiet: bool = False) -> Images:
    """Images to be labelled.

    Args:
        source: a folder, searched with all below it through links, or a .npy file of (N, H, W, C) uint8.
        classes: of the model.
        channels: of its input; files are read with as many, an array must have as many.
        quiet: do not report what is left out of a folder: hidden files, thumbnails, other files.

    Returns:
        The images, each with label 0; files by their full paths, which mean the same from elsewhere.

    Raises:
        DataError: there are none, or it is another array.
    """
    if source.is_dir():
        files, left_out = files_below(source.absolute())
        if not files:
            raise DataError(f"{source}: contains no images ({', '.join(IMAGE_SUFFIXES[:5])}, ...)")
        if left_out and not quiet:
            print(f"hpcdat: {source}: left out: {left_out}", file=sys.stderr, flush=True)
        return Images(Files.of(files), np.zeros(len(files), np.int64), classes)
    try:
        pixels = np.load(source, allow_pickle=False)
    except Exception as error:
        # A broken file can fail in any way, here as below.
        raise DataError(f"{source}: neither a folder nor a .npy file of images: {error}") from None
    if not isinstance(pixels, np.ndarray):
        raise DataError(f"{source}: expected a .npy file with one array")
    pixels = _checked(source, pixels)
    if not len(pixels):
        raise DataError(f"{source}: contains no images")
    if pixels.shape[3] != channels:
        raise DataError(f"{source}: images have {pixels.shape[3]} channels, the model expects {channels}")
    return Images(_names(source, len(pixels)), np.zeros(len(pixels), np.int64), classes, pixels)


def write_pseudo_labelled(path: Path, images: Images, labels: NDArray[np.int64]) -> None:
    """Write images, or the paths of their files, with the labels that a model gave them, as .npz.

    Raises:
        OSError: it could not be written.
    """
    what = {"files": np.array(list(images.files))} if images.pixels is None else {"images": images.pixels}

    def write(file: IO[bytes]) -> None:
        np.savez(file, labels=labels, classes=np.array(images.classes), **what)

    write_atomically(path, write)


def read_pseudo_labelled(path: Path, classes: list[str]) -> Images:
    """What :func:`write_pseudo_labelled` wrote, or the pickle of Carmon et al. 2019.

    Args:
        path: .npz; or a pickle of a dictionary with ``data`` (N, H, W, C) uint8 and
            ``extrapolated_targets`` (N,), whose other values are ignored.
        classes: of the labelled images.

    Raises:
        DataError: it cannot be read, holds more than arrays, or has labels of other classes.
    """
    try:
        held = _read_npz(path) if zipfile.is_zipfile(path) else read_arrays(path, PICKLED)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    except Exception as error:
        raise DataError(f"{path}: not an .npz or a pickle of arrays only: {error}") from None
    labels = held.get("labels", held.get("extrapolated_targets"))
    named = held.get("classes")
    if named is not None and named.tolist() != classes:
        raise DataError(f"{path}: labels of other classes than the training images'")
    if labels is None or labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(f"{path}: no array of labels in it (labels, or extrapolated_targets)")
    if not len(labels):
        raise DataError(f"{path}: contains no images")
    if not 0 <= labels.min() <= labels.max() < len(classes):
        raise DataError(f"{path}: labels from {labels.min()} to {labels.max()} for {len(classes)} classes")
    pixels, files = held.get("images", held.get("data")), held.get("files")
    stored = pixels if files is None else files if pixels is None else None
    if stored is None or stored.shape[:1] != labels.shape:
        raise DataError(f"{path}: expected as many images (or files) as its {len(labels)} labels")
    if pixels is None:
        return Images(Files.of(map(str, stored.tolist())), labels, classes)
    return Images(_names(path, len(labels)), labels, classes, _checked(path, pixels))


def joined(labelled: Images, unlabelled: Images) -> Images:
    """All images of both, the pseudo-labelled ones last.

    Raises:
        DataError: one has its pixels in memory and the other in files, or in another size.
    """
    ours, theirs = labelled.pixels, unlabelled.pixels
    labels = np.concatenate([labelled.labels, unlabelled.labels])
    if isinstance(labelled.files, Files) and isinstance(unlabelled.files, Files):
        files = Files.joined([labelled.files, unlabelled.files])
        return Images(files, labels, labelled.classes, unlabelled=len(unlabelled))
    if ours is None or theirs is None or ours.shape[1:] != theirs.shape[1:]:
        raise DataError(
            "data.unlabelled: labelled and unlabelled images must both be files, or arrays of one shape"
        )
    names, pixels = [*labelled.files, *unlabelled.files], np.concatenate([ours, theirs])
    return Images(names, labels, labelled.classes, pixels, len(unlabelled))


def _names(path: Path, count: int) -> list[str]:
    return [f"{path}: image {i}" for i in range(count)]


def _checked(path: Path, pixels: NDArray[Any]) -> NDArray[np.uint8]:
    if pixels.ndim != 4 or pixels.dtype != np.uint8 or pixels.shape[3] not in (1, 3):
        raise DataError(
            f"{path}: expected images (N, H, W, 1 or 3) of uint8, not {pixels.shape} of {pixels.dtype}"
        )
    return np.ascontiguousarray(pixels)


def _read_npz(path: Path) -> dict[str, NDArray[Any]]:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: array for name, array in arrays.items() if isinstance(array, np.ndarray)}
