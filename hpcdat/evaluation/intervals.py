"""Intervals of accuracies: what a share of a sample says about the share of all images."""

from __future__ import annotations

CONFIDENCE = 0.95
"""Probability that an interval covers the share in the population that the sample was drawn from."""
MANY_IMAGES = 10_000
"""From this number of images on, accuracies are given without intervals: these are within one point."""


def wilson(share: float, images: int) -> tuple[float, float]:
    """Wilson's score interval of a share (Wilson 1927), at :data:`CONFIDENCE`.

    Args:
        share: of the images, in [0, 1].
        images: number of images, >= 1.

    Returns:
        Lower and upper end, in [0, 1].
    """
    # SciPy's statistics take half a second to import, which only tables need.
    from scipy.stats import binomtest

    interval = binomtest(round(share * images), images).proportion_ci(CONFIDENCE, method="wilson")
    # Rounding may carry the ends beyond 0 and 1.
    return max(0.0, float(interval.low)), min(1.0, float(interval.high))


def with_interval(share: float, images: int, digits: int = 2) -> str:
    """An accuracy in per cent with its interval, such as ``76.83 [72.4, 80.7]``.

    Args:
        share: in [0, 1].
        images: number of images; from :data:`MANY_IMAGES` on without interval.
        digits: decimal places of the accuracy.
    """
    text = f"{100 * share:.{digits}f}"
    if images >= MANY_IMAGES:
        return text
    low, high = wilson(share, images)
    return f"{text} [{100 * low:.1f}, {100 * high:.1f}]"
