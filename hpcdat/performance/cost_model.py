"""The cost model: seconds of an exchange, predicted from a few measurements.

A collective takes the time measured for as many bytes through the busiest card. Coding and adding take a
time proportional to the count of numbers. The network carries one collective at a time, the workers agree
at once on all collectives in progress, and codes are computed concurrently. So several buckets take as long
as the longer of the two sums, network and computation, plus the part of the shorter one that does not
overlap: one bucket's share, and what both lose by sharing processors.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import NormalDist
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator

from hpcdat.exchange.pipeline import IN_FLIGHT
from hpcdat.exchange.traffic import Collective, Kind

Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
"""A finite, non-negative number of bytes or seconds."""


class Link(BaseModel):
    """The time of one kind of collective by its size.

    Attributes:
        points: bytes through the busiest card and the seconds per collective, measured with as many in
            progress as in an exchange; two or more, with increasing bytes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    points: list[tuple[Amount, Amount]] = Field(min_length=2)

    @field_validator("points")
    @classmethod
    def _rise(cls, points: list[tuple[float, float]]) -> list[tuple[float, float]]:
        if any(more <= less for (less, _), (more, _) in pairwise(points)):
            raise ValueError("bytes must rise from point to point")
        return points

    @property
    def latency(self) -> float:
        """Seconds of the smallest measured collective, including the workers' agreement."""
        return self.points[0][1]

    def seconds(self, carried: float) -> float:
        """Seconds for ``carried`` bytes through the busiest card, by linear interpolation."""
        right = bisect_left(self.points, (carried, 0.0), lo=1, hi=len(self.points) - 1)
        (less, sooner), (more, later) = self.points[right - 1 : right + 1]
        return sooner + max(later - sooner, 0.0) * (carried - less) / (more - less)


class Network(BaseModel):
    """Measured links, and their extrapolation to other numbers of workers.

    Attributes:
        nodes, per_node: the workers among which the links were measured.
        links: by kind of collective.
        sharing: fraction of the possible overlap of network and computation that is lost because both use
            the same processors: 0 if they overlap fully, 1 if not at all.
        tree: whether an all-reduce goes up and down a tree, as NCCL's may from version 2.4 on, and not around
            a ring. Both carry as many bytes, but fewer messages of a tree follow one another.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    nodes: int = Field(ge=1)
    per_node: int = Field(1, ge=1)
    links: Mapping[Kind, Link]
    sharing: Annotated[float, Field(ge=0, le=1)] = 0.0
    tree: bool = False

    def latency(self, collective: Collective, nodes: int, per_node: int = 1) -> float:
        """Seconds of an empty collective among nodes x per_node workers.

        For other numbers of workers than measured, it is proportional to the number of consecutive messages.
        """
        rounds = collective.rounds(nodes * per_node, tree=self.tree)
        measured = collective.rounds(self.nodes * self.per_node, tree=self.tree)
        return rounds / measured * self.links[collective.kind].latency

    def transfer(self, collective: Collective, nodes: int, per_node: int = 1) -> float:
        """Seconds that the bytes of a collective add to its latency."""
        link = self.links[collective.kind]
        return max(link.seconds(collective.on_card(nodes, per_node)) - link.latency, 0.0)


def predict(
    buckets: Sequence[Sequence[Collective]],
    computing: float,
    network: Network,
    nodes: int,
    per_node: int = 1,
) -> float:
    """Seconds of one exchange of all buckets.

    Args:
        buckets: the collectives of each bucket.
        computing: seconds that a worker spends on the codes of all buckets.
        network: the measured links.
        nodes, per_node: the workers that exchange.
    """
    crossing = [collective for bucket in buckets for collective in bucket]
    latency = sum(network.latency(c, nodes, per_node) for c in crossing)
    wire = sum(network.transfer(c, nodes, per_node) for c in crossing)
    # Latencies were measured with IN_FLIGHT collectives in progress; with fewer, each one waits longer.
    wire += latency * IN_FLIGHT / max(min(len(buckets), IN_FLIGHT), 1)
    one_bucket = 1 / max(len(buckets), 1)
    return max(wire, computing) + min(wire, computing) * (one_bucket + (1 - one_bucket) * network.sharing)


def slowdown_by_slowest(jitter: float, workers: int) -> float:
    """Expected time of the slowest of several workers over that of one: all wait for it in every step.

    Their times are taken as independent and normal. The expected maximum is Blom's approximation (1958).

    Args:
        jitter: standard deviation of a worker's time in a step over its mean.
        workers: M, >= 1.
    """
    return 1.0 + jitter * NormalDist().inv_cdf((workers - 0.375) / (workers + 0.25))
