"""Latency and bandwidth, fitted to times of several sizes, and the limit of a network card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from hpcdat.performance.benchmark_file import BenchmarkFile, Row
from hpcdat.report.benchmarks.files import card_rate

SIZES = 3
"""Fewest sizes of a fit: of two sizes any line has no deviation."""


@dataclass(frozen=True)
class Fit:
    """Seconds as latency + bytes / bandwidth (the alpha-beta model).

    Attributes:
        latency: seconds.
        seconds_per_byte: the inverse of the bandwidth.
        deviation: largest relative difference between the line and a measured median.
        smallest, largest: sizes that were measured, in bytes.
    """

    latency: float
    seconds_per_byte: float
    deviation: float
    smallest: int
    largest: int

    @property
    def bandwidth(self) -> float | None:
        """Bytes of the buffer or message per second; None if the times do not grow with the size."""
        return 1 / self.seconds_per_byte if self.seconds_per_byte else None

    @property
    def shows_bandwidth(self) -> bool:
        """Whether the bytes of the largest size take as long as the latency or longer."""
        return self.seconds_per_byte * self.largest >= self.latency

    def seconds(self, size: float) -> float:
        """Seconds of so many bytes."""
        return self.latency + self.seconds_per_byte * size


def fit(points: Mapping[int, Row]) -> Fit | None:
    """Fit latency and bandwidth, neither of them negative, to the medians.

    The sum of the squares of the relative differences is minimised, so that small sizes count as much as
    large ones, which take a thousand times as long.

    Args:
        points: rows by size in bytes.

    Returns:
        None for fewer than :data:`SIZES` sizes with a positive time.
    """
    timed = {size: row.median for size, row in points.items() if row.median > 0}
    if len(timed) < SIZES:
        return None
    sizes, seconds = (np.array(list(values), dtype=float) for values in (timed.keys(), timed.values()))
    # Both unknowns about 1, for the solver's tolerance.
    scale = float(seconds.max() / sizes.max())
    (latency, per_byte), _ = nnls(
        np.stack([seconds.max() / seconds, scale * sizes / seconds], axis=1), np.ones(len(timed))
    )
    latency, per_byte = float(latency * seconds.max()), float(per_byte * scale)
    deviation = float(np.abs((latency + per_byte * sizes) / seconds - 1).max())
    return Fit(latency, per_byte, deviation, min(timed), max(timed))


def limit(row: Row, file: BenchmarkFile) -> float | None:
    """Seconds that the card of a node needs at least for its share of a row's bytes.

    The share is that of ``busbw``: what each worker has to send. A ring passes the card of a node once, so
    that this is what the card sends; in an all-to-all among several workers a node it sends more.

    Args:
        row: of the file.
        file: with the number of nodes and, unless the row has its own, the rate of a card.

    Returns:
        None without a rate, a second node or a bandwidth.

    Raises:
        InputError: the rate is wrong.
    """
    nodes, bandwidth = file.settings.get("nodes"), row.figures.get("busbw")
    rate = card_rate(row.parameters.get("rate", file.settings.get("rate")))
    if rate is None or bandwidth is None or not isinstance(nodes, int) or nodes < 2:
        return None
    return row.median * bandwidth / rate
