"""Views of images: where they lie, how often they come, and that nothing but the seed decides."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpcdat.data.augmentation import PADDING, view_of
from hpcdat.data.torchvision_loader import look
from hpcdat.job import Data

sides = st.integers(1, 700)


def settings(augmentation, size=32):
    return Data(root="x", augmentation=augmentation, image_size=size)


@given(sides, sides, st.sampled_from(["none", "crop-flip", "pad-crop"]), st.booleans(), st.integers(1, 64))
def test_regions_lie_in_the_image_and_windows_in_the_padding(height, width, augmentation, training, size):
    view = view_of(height, width, 5, settings(augmentation, size), training=training, seed=1)
    assert view.top >= 0 and view.left >= 0 and view.height > 0 and view.width > 0
    assert view.top + view.height <= height and view.left + view.width <= width
    margin = PADDING if training and augmentation == "pad-crop" else 0
    assert -margin <= view.window_top and view.window_top + size <= view.rows + margin
    assert -margin <= view.window_left and view.window_left + size <= view.columns + margin
    assert training or view.flip == 0


def test_pad_crop_shows_every_shift_of_the_zero_padded_image_and_its_mirror():
    image = torch.arange(1, 65, dtype=torch.uint8).view(1, 8, 8)
    padded = torch.nn.functional.pad(image, [PADDING] * 4)
    expected = {}
    for top in range(2 * PADDING + 1):
        for left in range(2 * PADDING + 1):
            shifted = padded[:, top : top + 8, left : left + 8]
            for flip, seen in enumerate((shifted, shifted.flip(2))):
                expected[seen.numpy().tobytes()] = (top, left, flip)
    found = [
        expected[
            look(image, view_of(8, 8, i, settings("pad-crop", 8), training=True, seed=0), 8).numpy().tobytes()
        ]
        for i in range(4000)
    ]
    assert set(found) == set(expected.values()) and len(expected) == 162


def test_random_resized_crops_have_the_areas_and_aspects_asked_for():
    """Where every draw fits, the share of the area is uniform in [0.08, 1] up to the fit."""
    views = [view_of(400, 400, i, settings("crop-flip"), training=True, seed=0) for i in range(3000)]
    areas = np.array([view.height * view.width / 160000 for view in views])
    aspects = np.array([view.width / view.height for view in views])
    assert areas.min() > 0.075 and areas.min() < 0.1 and areas.max() > 0.95
    assert 0.74 < aspects.min() < 0.78 and 1.28 < aspects.max() < 1.35
    # Below 3/4 of the area every aspect fits, so small areas are equally likely.
    lower, upper = np.mean((areas > 0.1) & (areas < 0.4)), np.mean((areas > 0.4) & (areas < 0.7))
    assert abs(lower - upper) < 0.05
    assert 0.45 < np.mean([view.flip for view in views]) < 0.55


def test_only_seed_and_image_decide():
    one = [view_of(40, 50, i, settings("crop-flip"), training=True, seed=1) for i in range(20)]
    again = [view_of(40, 50, i, settings("crop-flip"), training=True, seed=1) for i in reversed(range(20))]
    other = [view_of(40, 50, i, settings("crop-flip"), training=True, seed=2) for i in range(20)]
    assert one == again[::-1] and one != other and len(set(one)) > 15
