"""What the model sees of an image: a pure function of image, seed and the job's settings.

An epoch can therefore be taken up anywhere: no random state has to be kept. The number of workers
changes nothing either. Both loaders carry out the same views, so they agree pixel by pixel, but not in the
policy that may follow: each library has its own AutoAugment, with the same operations and probabilities
but its own draws, scales of magnitudes and rounding.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from hpcdat.job import Data
from hpcdat.seeds import derive

EVALUATION_MARGIN = 256 / 224
"""Shorter side over crop when evaluating a net trained with random crops (256 for 224)."""

PADDING = 4
"""Pixels of zeros around an image in pad-crop."""

POLICY_FILL = 128
"""Grey level that a policy's rotations and shears bring in from outside the image."""


class View(NamedTuple):
    """Cut a region out, resize it, look at it through a window, perhaps in a mirror.

    Lengths and places are whole pixels.

    Attributes:
        top, left, height, width: the region of the stored image.
        rows, columns: what the region is resized to.
        window_top, window_left: corner of the square window of ``image_size`` pixels in the resized
            region; where the window reaches beyond, it shows zeros.
        flip: 1 to mirror left and right, else 0.
    """

    top: int
    left: int
    height: int
    width: int
    rows: int
    columns: int
    window_top: int
    window_left: int
    flip: int


def view_of(height: int, width: int, index: int, settings: Data, *, training: bool, seed: int) -> View:
    """The view of one image.

    Args:
        height, width: of the stored image, pixels.
        index: its position in the list of images.
        settings: the job's ``data`` section.
        training: whether the training augmentation applies.
        seed: of the epoch.
    """
    if not training or settings.augmentation == "none":
        # A net trained on random crops has seen its objects larger than they are.
        margin = EVALUATION_MARGIN if settings.augmentation == "crop-flip" else 1
        return _centre(height, width, settings.image_size, round(settings.image_size * margin))
    random = np.random.default_rng([seed, index])
    if settings.augmentation == "crop-flip":
        view = _random_resized_crop(height, width, settings.image_size, random)
    else:
        view = _centre(height, width, settings.image_size, settings.image_size)
        down, right = random.integers(-PADDING, PADDING, size=2, endpoint=True)
        view = view._replace(
            window_top=view.window_top + int(down), window_left=view.window_left + int(right)
        )
    return view._replace(flip=int(random.integers(2)))


def policy_seed(index: int, seed: int) -> int:
    """The seed of a policy's random choices for one image, independent of those for its view.

    Args:
        index: its position in the list of images.
        seed: of the epoch.
    """
    return derive(seed, "policy", index)


def _centre(height: int, width: int, size: int, shorter: int) -> View:
    """The shorter side resized to ``shorter``, and the square in the middle."""
    shortest = min(height, width)
    rows, columns = height * shorter // shortest, width * shorter // shortest
    return View(0, 0, height, width, rows, columns, (rows - size) // 2, (columns - size) // 2, 0)


def _random_resized_crop(height: int, width: int, size: int, random: np.random.Generator) -> View:
    """Inception's crop, with torchvision's numbers: 8 % to all of the area, aspect 3/4 to 4/3.

    After ten draws that do not fit, the middle of the image, as near to those aspects as it allows.
    """
    for _ in range(10):
        area = height * width * random.uniform(0.08, 1.0)
        aspect = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top, left = (int(random.integers(side, endpoint=True)) for side in (height - h, width - w))
            return View(top, left, h, w, size, size, 0, 0, 0)
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    return View((height - h) // 2, (width - w) // 2, h, w, size, size, 0, 0, 0)
