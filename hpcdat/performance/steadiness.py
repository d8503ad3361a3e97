"""Whether a measurement can be repeated: how far the median of another run may differ."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hpcdat.performance.benchmark_file import Row

AGREEMENT = 0.1
"""How far the medians of two runs may differ."""
CONFIDENCE = 0.95
"""Level of the intervals of medians."""
FEWEST = 6
"""Samples without which there is no such interval: 2 / 2^6 is below 5 %, 2 / 2^5 above."""


def interval_of_median(samples: Sequence[float]) -> tuple[float, float] | None:
    """A confidence interval of the median whatever the distribution: two of the sorted samples.

    The median lies below the k-th smallest of n samples with the probability that at most k - 1 of n coin
    tosses are heads.

    Returns:
        The bounds, with :data:`CONFIDENCE` or more; None for fewer than :data:`FEWEST` samples.
    """
    count, below, k = len(samples), 0.0, 0
    while True:
        below += math.comb(count, k) / 2**count
        if below > (1 - CONFIDENCE) / 2:
            break
        k += 1
    ordered = sorted(samples)
    return (ordered[k - 1], ordered[-k]) if k else None


def half_width(row: Row) -> float | None:
    """Half the width of the interval of a row's median, over the median; None if it is unknown.

    The samples are the medians of the rounds: repetitions that follow one another are not independent.
    """
    bounds = interval_of_median(row.medians_of_rounds)
    return (bounds[1] - bounds[0]) / 2 / row.median if bounds and row.median else None


def is_steady(row: Row, within: float = AGREEMENT) -> bool | None:
    """Whether the median of another run should agree within a share of it; None for too few rounds.

    The difference of two medians varies sqrt(2) times as much as one of them. Of rows whatever their spread,
    fewer than 5 % are called steady and yet differ by more.
    """
    if interval_of_median(row.medians_of_rounds) is None:
        return None
    width = half_width(row)
    return width is not None and math.sqrt(2) * width <= within
