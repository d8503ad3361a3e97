"""Seconds of an exchange, predicted from a few measured numbers.

A collective takes the time that was measured for as many bytes through the busiest card; coding and
adding take a time in proportion to the numbers. The network carries one collective at a time and
codes are computed beside it, so several buckets take as long as the longer of the two sums, and the
shorter part of one bucket, in which the other has nothing to do.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from hpcdat.exchange.accounting import Collective, Kind

Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Link(BaseModel):
    """The network as one kind of collective finds it.

    Attributes:
        points: bytes through the busiest card and the seconds they took, two or more, bytes rising.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    points: list[tuple[Amount, Amount]] = Field(min_length=2)

    @property
    def latency(self) -> float:
        """Seconds of a collective that carries next to nothing, negotiation included."""
        return self.points[0][1]

    @property
    def bandwidth(self) -> float:
        """Bytes per second between the two largest messages."""
        (less, sooner), (more, later) = self.points[-2:]
        return (more - less) / max(later - sooner, 1e-9)

    def seconds(self, carried: float) -> float:
        """Of a collective with so many bytes through the busiest card, on the line through its neighbours."""
        right = bisect_left(self.points, (carried, 0.0), lo=1, hi=len(self.points) - 1)
        (less, sooner), (more, later) = self.points[right - 1 : right + 1]
        return sooner + max(later - sooner, 0.0) * (carried - less) / (more - less)


def predict(
    buckets: Sequence[Sequence[Collective]],
    computing: float,
    links: Mapping[Kind, Link],
    workers: int,
) -> float:
    """Seconds of one exchange of all buckets.

    Args:
        buckets: the collectives of each.
        computing: seconds that a worker computes for all of them.
        links: of every kind of collective among them.
        workers: that cross the network.
    """
    wire = sum(links[c.kind].seconds(c.traffic(workers).busiest) for bucket in buckets for c in bucket)
    return max(wire, computing) + min(wire, computing) / max(len(buckets), 1)
