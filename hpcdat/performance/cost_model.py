"""Seconds of an exchange, predicted from a few measured numbers.

A collective takes the time that was measured for as many bytes through the busiest card; coding and
adding take a time in proportion to the numbers. The network carries one collective at a time, the workers
agree at once on all that are under way, and codes are computed beside them. So several buckets take as
long as the longer of the two sums, and of the shorter one what cannot be hidden: the part of one bucket,
in which the other has nothing to do, and what both lose by sharing processors.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator

from hpcdat.exchange.pipeline import IN_FLIGHT
from hpcdat.exchange.traffic import Collective, Kind

Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Link(BaseModel):
    """The network as one kind of collective finds it.

    Attributes:
        points: bytes through the busiest card and the seconds they took with as many collectives under way
            as in an exchange, each; two or more, bytes rising.
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
        """Seconds of a collective that carries next to nothing, agreement included."""
        return self.points[0][1]

    def seconds(self, carried: float) -> float:
        """Of a collective with so many bytes through the busiest card, on the line through its neighbours."""
        right = bisect_left(self.points, (carried, 0.0), lo=1, hi=len(self.points) - 1)
        (less, sooner), (more, later) = self.points[right - 1 : right + 1]
        return sooner + max(later - sooner, 0.0) * (carried - less) / (more - less)


class Network(BaseModel):
    """Links as they were measured, and what becomes of them among other numbers of workers.

    Attributes:
        nodes, per_node: workers that it was measured among: on so many nodes, so many on each.
        links: of every kind of collective that was measured.
        sharing: of what could run beside each other, network and computation, the share that does not,
            because they share processors: 0 on nodes of their own with cards that work by themselves, 1
            where nothing is gained.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    nodes: int = Field(ge=1)
    per_node: int = Field(1, ge=1)
    links: Mapping[Kind, Link]
    sharing: Annotated[float, Field(ge=0, le=1)] = 0.0

    def latency(self, collective: Collective, nodes: int, per_node: int = 1) -> float:
        """Seconds of a collective that carries nothing, among so many workers on each of so many nodes.

        Where these are not the measured ones, it grows with the messages that have to follow each other.
        """
        rounds = collective.rounds(nodes * per_node) / collective.rounds(self.nodes * self.per_node)
        return rounds * self.links[collective.kind].latency

    def transfer(self, collective: Collective, nodes: int, per_node: int = 1) -> float:
        """Seconds that its bytes add to that; those on the busiest card follow from the algorithm."""
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
        buckets: the collectives of each.
        computing: seconds that a worker computes for all of them.
        network: as it was measured.
        nodes, per_node: the workers that exchange: on so many nodes, so many on each.
    """
    crossing = [collective for bucket in buckets for collective in bucket]
    latency = sum(network.latency(c, nodes, per_node) for c in crossing)
    wire = sum(network.transfer(c, nodes, per_node) for c in crossing)
    # With fewer under way each waits longer.
    wire += latency * IN_FLIGHT / max(min(len(buckets), IN_FLIGHT), 1)
    alone = 1 / max(len(buckets), 1)
    return max(wire, computing) + min(wire, computing) * (alone + (1 - alone) * network.sharing)
