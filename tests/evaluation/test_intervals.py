"""Intervals of accuracies."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcdat.evaluation.intervals import wilson, with_interval


@given(st.integers(1, 20_000), st.floats(0, 1))
def test_intervals_are_wilsons(images, share):
    """Where the difference of the shares is z standard errors of the end of the interval (Wilson 1927)."""
    share = round(share * images) / images
    low, high = wilson(share, images)
    assert 0 <= low <= share <= high <= 1
    for end in (low, high):
        # The end that the share itself reaches, 0 or 1, solves the equation too.
        assert (share - end) ** 2 == pytest.approx(
            1.959964**2 * end * (1 - end) / images, rel=1e-4, abs=1e-12
        )


@pytest.mark.parametrize(
    "share, images, text",
    [
        (305 / 397, 397, "76.83 [72.4, 80.7]"),
        (17 / 20, 20, "85.00 [64.0, 94.8]"),
        (0.0, 30, "0.00 [0.0, 11.4]"),
        (0.5, 10_000, "50.00"),
        (0.5, 9_999, "50.00 [49.0, 51.0]"),
    ],
)
def test_accuracies_on_few_images_have_intervals(share, images, text):
    assert with_interval(share, images) == text
