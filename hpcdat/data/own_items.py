"""The items of a user's data set: pairs of an image, in one of the usual forms, and a label."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from hpcdat.data.image_file import Unusable, pixels_of
from hpcdat.errors import first_line, shorten

IMAGES_ACCEPTED = (
    "a PIL image, an array (H, W) or (H, W, 1 or 3), or a tensor (1 or 3, H, W), of uint8 or of floats in "
    "[0, 1]"
)
"""The forms of an image, for messages."""


class WrongItem(ValueError):
    """An item is of the wrong kind; the message says what was found and what is accepted."""


def split_item(item: Any) -> tuple[Any, int]:
    """Image and label of an item.

    Raises:
        WrongItem: it is no pair, or its label is no whole number.
    """
    if isinstance(item, Mapping):
        keys = shorten(", ".join(map(str, item)))
        raise WrongItem(f"found a mapping with {keys}; expected a pair (image, label)")
    if not isinstance(item, tuple | list):
        raise WrongItem(f"found type {type(item).__name__}; expected a pair (image, label)")
    if len(item) != 2:
        raise WrongItem(f"found {len(item)} parts; expected a pair (image, label)")
    return item[0], _label(item[1])


def pixels_of_item(image: Any, channels: int) -> NDArray[np.uint8]:
    """The pixels of an image: (H, W, channels), uint8; floats are rounded to 8 bits.

    Args:
        image: one of :data:`IMAGES_ACCEPTED`. Grey and colour are converted as those of files are.
        channels: 1 for grey, 3 for colour.

    Raises:
        WrongItem: it is something else.
        Unusable: a PIL image whose file is damaged.
    """
    if not isinstance(image, Image.Image):
        image = Image.fromarray(_eight_bits(_by_rows(image)))
    elif 0 in image.size:
        raise WrongItem(f"its image has {image.height} x {image.width} pixels")
    try:
        return pixels_of(image, channels)
    except (Unusable, MemoryError):
        raise
    except Exception as error:
        # A damaged file that Pillow opens without reading it can fail in any way.
        raise Unusable(f"found a damaged {image.format} file ({first_line(error)})") from None


def has_fractions(image: Any) -> bool:
    """Whether pixels are floats that 8 bits cannot represent."""
    if isinstance(image, Image.Image) or _by_rows(image).dtype.kind != "f":
        return False
    scaled = _by_rows(image).astype(np.float64) * 255
    return bool((np.abs(scaled - np.rint(scaled)) > 1e-2).any())


def _by_rows(image: Any) -> NDArray[Any]:
    """An array or a tensor as (H, W) or (H, W, 3)."""
    if isinstance(image, torch.Tensor):
        shape, held = tuple(image.shape), image.detach().cpu()
        if held.dtype == torch.bfloat16:
            held = held.float()
        fits = held.ndim == 3 and shape[0] in (1, 3)
        array = np.moveaxis(held.numpy(), 0, -1) if fits else np.empty(0)
        expected = "(1 or 3, H, W), as torchvision's transforms make it"
    elif isinstance(image, np.ndarray):
        shape, array = image.shape, image
        fits = image.ndim == 2 or (image.ndim == 3 and shape[2] in (1, 3))
        expected = "(H, W) or (H, W, 1 or 3)"
    else:
        raise WrongItem(f"its image is of type {type(image).__name__}; expected {IMAGES_ACCEPTED}")
    if not fits:
        kind = "a tensor" if isinstance(image, torch.Tensor) else "an array"
        raise WrongItem(f"its image is {kind} of shape {shape}; expected {expected}")
    if not array.size:
        raise WrongItem(f"its image has no pixels (shape {shape})")
    return array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array


def _eight_bits(array: NDArray[Any]) -> NDArray[np.uint8]:
    """Pixels of uint8, or of floats in [0, 1], as uint8."""
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if array.dtype.kind != "f":
        raise WrongItem(f"its image is of dtype {array.dtype}; expected uint8, or floats in [0, 1]")
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= 1):
        # A normalised image has numbers below 0, or hardly above 1.
        instead = (
            ": divide it by 255"
            if low >= 0 and 10 < high <= 255
            else ". Leave out a normalisation: the model does that, by model.mean and model.std"
        )
        raise WrongItem(
            f"its image has floats from {low:.4g} to {high:.4g}; expected floats in [0, 1], or uint8{instead}"
        )
    return np.rint(array.astype(np.float64) * 255).astype(np.uint8)


def _label(label: Any) -> int:
    """A label as a whole number."""
    if isinstance(label, torch.Tensor | np.ndarray | np.generic):
        shape, dtype = tuple(label.shape), str(label.dtype).removeprefix("torch.")
        if shape or not dtype.startswith(("int", "uint")):
            what = f"of shape {shape}" if shape else f"of dtype {dtype}"
            raise WrongItem(f"its label is {what}; expected a whole number, the number of the class")
        return int(label)
    if isinstance(label, bool) or not isinstance(label, int):
        raise WrongItem(
            f"its label is {shorten(repr(label))}, of type {type(label).__name__}; expected a whole number, "
            "the number of the class"
        )
    return label
