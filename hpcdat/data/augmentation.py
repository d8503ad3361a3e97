"""Crop, resize and flip of each image: a pure function of image, seed and settings.

A run can therefore resume anywhere in an epoch: no random state has to be saved. The number of workers
changes nothing either. All loaders apply the same views, so they agree pixel by pixel, but not in the
policy that may follow: each library has its own AutoAugment, with the same operations and probabilities
but its own draws, scales of magnitudes and rounding.

The views of many images are drawn at once: that takes milliseconds for an epoch of CIFAR, and a generator for
every image would take a second.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hpcdat.config.sections import Data
from hpcdat.data.sampler import Indices
from hpcdat.seeds import derive

EVALUATION_MARGIN = 256 / 224
"""Shorter side over crop when evaluating a network trained with random crops (256 for 224)."""

PADDING = 4
"""Pixels of zeros around an image in pad-crop."""

POLICY_FILL = 128
"""Grey level that a policy's rotations and shears bring in from outside the image."""

ATTEMPTS = 10
"""Sizes tried for a random resized crop."""

DRAWS = {"crop-flip": 2 + 2 * ATTEMPTS, "pad-crop": 2}
"""Random numbers per image by augmentation, in addition to that of its flip: two for the position, two for
each size tried."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""SplitMix64's increment of the state: 2^64 over the golden ratio, made odd."""


class View(NamedTuple):
    """A region that is cut out, resized, cropped to a window, and perhaps mirrored.

    Lengths and places are whole pixels: of one image each an ``int``, of many an int64 array (N,).

    Attributes:
        top, left, height, width: the region of the stored image.
        rows, columns: what the region is resized to.
        window_top, window_left: corner of the square window of ``image_size`` pixels in the resized
            region; beyond the region there are zeros.
        flip: 1 to mirror left and right, else 0.
    """

    top: int | Indices
    left: int | Indices
    height: int | Indices
    width: int | Indices
    rows: int | Indices
    columns: int | Indices
    window_top: int | Indices
    window_left: int | Indices
    flip: int | Indices


def view_of(height: int, width: int, index: int, settings: Data, *, training: bool, seed: int) -> View:
    """The view of one image: :func:`views_of` for a single one, in ``int``."""
    sides = np.array([height]), np.array([width])
    views = views_of(*sides, np.array([index]), settings, training=training, seed=seed)
    return View(*(int(np.ravel(numbers)[0]) for numbers in views))


def views_of(
    height: Indices, width: Indices, index: Indices, settings: Data, *, training: bool, seed: int
) -> View:
    """The views of images, each a function of its own size, its index and the seed.

    Args:
        height, width: of the stored images, pixels, (N,) each.
        index: their positions in the list of images, (N,).
        settings: the job's ``data`` section.
        training: whether the training augmentation applies.
        seed: of the epoch.
    """
    if not training or settings.augmentation == "none":
        # To a network trained on random crops, objects appeared larger than they are.
        margin = EVALUATION_MARGIN if settings.augmentation == "crop-flip" else 1
        return _centre(height, width, settings.image_size, round(settings.image_size * margin))
    draws = uniform(seed, index, 1 + DRAWS[settings.augmentation])
    flip, draws = draws[:, 0], draws[:, 1:]
    if settings.augmentation == "crop-flip":
        view = _random_resized_crop(height, width, settings.image_size, draws)
    else:
        view = _centre(height, width, settings.image_size, settings.image_size)
        down, right = _integers(draws, -PADDING, PADDING).T
        view = view._replace(window_top=view.window_top + down, window_left=view.window_left + right)
    return view._replace(flip=_integers(flip, 0, 1))


def uniform(seed: int, index: Indices, count: int) -> NDArray[np.float64]:
    """Independent uniform numbers in [0, 1), multiples of 2^-53, ``count`` for each index: (N, count).

    From the generator SplitMix64 (Steele, Lea and Flood 2014). Each index i has its own stream: its initial
    state is output i + 1 of the generator seeded with ``seed``.

    Args:
        seed: in [0, 2^64).
        index: (N,), each in [0, 2^63).
        count: of numbers for each.
    """
    states = _mixed(np.uint64(seed) + (index.astype(np.uint64) + np.uint64(1)) * _GOLDEN)
    steps = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
    draws: NDArray[np.float64] = (_mixed(states[:, None] + steps) >> np.uint64(11)) * 2.0**-53
    return draws


def _mixed(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The output of SplitMix64 for a state."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = z ^ (z >> np.uint64(31))
    return mixed


def _integers(draw: NDArray[np.float64], low: int | Indices, high: int | Indices) -> Indices:
    """Whole numbers in [low, high], uniform where the draws in [0, 1) are."""
    return low + np.floor(draw * (high - low + 1)).astype(np.int64)


def policy_seed(index: int, seed: int) -> int:
    """The seed of a policy's random choices for one image, independent of those for its view.

    Args:
        index: its position in the list of images.
        seed: of the epoch.
    """
    return derive(seed, "policy", index)


def _centre(height: Indices, width: Indices, size: int, shorter: int) -> View:
    """The shorter side resized to ``shorter``, and the square in the middle."""
    shortest = np.minimum(height, width)
    rows, columns = height * shorter // shortest, width * shorter // shortest
    zero = np.zeros_like(height)
    return View(zero, zero, height, width, rows, columns, (rows - size) // 2, (columns - size) // 2, zero)


def _random_resized_crop(height: Indices, width: Indices, size: int, draws: NDArray[np.float64]) -> View:
    """Inception's crop, with torchvision's numbers: 8 % to all of the area, aspect 3/4 to 4/3.

    After ten attempts that do not fit, the middle of the image, as near to those aspects as it allows.
    """
    down, right = draws[:, :2].T
    share, shape = draws[:, 2:].reshape(-1, 2, ATTEMPTS).swapaxes(0, 1)
    area = (height * width)[:, None] * (0.08 + 0.92 * share)
    aspect = np.exp(math.log(3 / 4) + math.log(16 / 9) * shape)
    w, h = (np.rint(np.sqrt(product)).astype(np.int64) for product in (area * aspect, area / aspect))
    fits = (w > 0) & (w <= width[:, None]) & (h > 0) & (h <= height[:, None])
    first = np.arange(len(fits)), fits.argmax(1)
    fits, w, h = fits[first], w[first], h[first]
    w = np.where(fits, w, np.minimum(width, np.rint(height * 4 / 3).astype(np.int64)))
    h = np.where(fits, h, np.minimum(height, np.rint(width * 4 / 3).astype(np.int64)))
    top = np.where(fits, _integers(down, 0, height - h), (height - h) // 2)
    left = np.where(fits, _integers(right, 0, width - w), (width - w) // 2)
    side, zero = np.full_like(height, size), np.zeros_like(height)
    return View(top, left, h, w, side, side, zero, zero, zero)
