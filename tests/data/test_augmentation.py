"""Views of images: where they lie, how often they come, and that nothing but the seed decides."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpcdat.config.sections import Data
from hpcdat.data.augmentation import PADDING, uniform, view_of, views_of
from hpcdat.data.torchvision_loader import apply_view

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
            apply_view(image, view_of(8, 8, i, settings("pad-crop", 8), training=True, seed=0), 8)
            .numpy()
            .tobytes()
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


@given(st.sampled_from(["none", "crop-flip", "pad-crop"]), st.integers(0, 2**63 - 1))
def test_views_drawn_together_are_those_drawn_one_by_one(augmentation, seed):
    height, width = np.array([[30, 40], [300, 200], [7, 90]]).T
    index = np.array([5, 0, 49999])
    together = views_of(height, width, index, settings(augmentation), training=True, seed=seed)
    one_by_one = [
        view_of(h, w, i, settings(augmentation), training=True, seed=seed)
        for h, w, i in zip(height, width, index, strict=True)
    ]
    assert np.stack(together, 1).tolist() == [list(view) for view in one_by_one]


def test_uniform_numbers_are_those_of_splitmix64_split():
    """The first outputs of the published generator for the seed 1234567, and a generator written plainly."""
    mask = 2**64 - 1

    def outputs(state, count):
        for _ in range(count):
            state = (state + 0x9E3779B97F4A7C15) & mask
            z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
            z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
            yield z ^ (z >> 31)

    assert list(outputs(1234567, 2)) == [6457827717110365317, 3203168211198807973]
    starts = list(outputs(1234567, 3))
    expected = [[(z >> 11) / 2**53 for z in outputs(starts[index], 4)] for index in (2, 0)]
    assert uniform(1234567, np.array([2, 0]), 4).tolist() == expected


def test_uniform_numbers_of_neighbouring_seeds_images_and_draws_are_independent():
    """Correlations of 100,000 pairs have a standard deviation of 0.0032."""
    draws = np.stack([uniform(seed, np.arange(50_000), 3) for seed in (7, 8)])
    pairs = [
        (draws[0, :, 0], draws[1, :, 0]),
        (draws[0, :-1], draws[0, 1:]),
        (draws[0, :, 0], draws[0, :, 1]),
        (draws[0, :, 1], draws[0, :, 2]),
    ]
    for a, b in pairs:
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.02
    assert abs(draws.mean() - 0.5) < 0.005 and abs(draws.var() - 1 / 12) < 0.002
