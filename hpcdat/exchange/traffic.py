"""Bytes that an exchange sends over the network, counted from its messages.

Counted as in the DAT paper ("MB per iteration": MiB that all workers together send), and for the busiest
network card. Frames, headers and acknowledgements of the transport are not included; measured on Ethernet,
they add 0.6 to 3.3 % to large messages.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from hpcdat.exchange.codecs import Cast, Codec, Quantized
from hpcdat.exchange.protocols import lanes_for, shard_length

Kind = Literal["allreduce", "allgather", "alltoall", "gather", "broadcast"]


@dataclass(frozen=True)
class Traffic:
    """Bytes of one exchange.

    Attributes:
        total: sent by all workers together.
        sent, received: by the busiest worker.
    """

    total: float
    sent: float
    received: float

    @property
    def busiest(self) -> float:
        """Bytes of the busiest card, in its busier direction: links carry both at once."""
        return max(self.sent, self.received)

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.total + other.total, self.sent + other.sent, self.received + other.received)


@dataclass(frozen=True)
class Collective:
    """One collective of a protocol.

    Attributes:
        kind: of collective.
        size: bytes of the vector (all-reduce, broadcast), of one worker's row (gather, all-gather), or of
            all rows that one worker sends (all-to-all).
    """

    kind: Kind
    size: float

    def traffic(self, workers: int) -> Traffic:
        """Bytes among ``workers`` workers; all-reduce and all-gather run in a ring, broadcast in a tree."""
        others, size = workers - 1, self.size
        match self.kind:
            case "allreduce":
                total = 2 * others * size
            case "allgather":
                total = workers * others * size
            case "alltoall":
                total = others * size
            case "gather":
                return Traffic(others * size, 0.0, others * size)
            case "broadcast":
                return Traffic(others * size, math.ceil(math.log2(workers)) * size, 0.0)
        return Traffic(total, total / workers, total / workers)

    def on_card(self, nodes: int, per_node: int) -> float:
        """Bytes through the busiest card, in its busier direction.

        A ring or tree passes through each node once; in an all-to-all every worker of a node sends to every
        worker of other nodes.

        Args:
            nodes: number of nodes, each with one card.
            per_node: workers on each node.
        """
        workers = nodes * per_node
        if nodes == 1:
            return 0.0
        match self.kind:
            case "alltoall":
                return per_node * (workers - per_node) / workers * self.size
            case "gather":
                return (workers - per_node) * self.size
            case "broadcast":
                return math.ceil(math.log2(nodes)) * self.size
        return self.traffic(workers).busiest

    def rounds(self, workers: int, *, tree: bool = False) -> int:
        """Number of messages that have to be sent one after the other; ``tree``: all-reduce in a tree."""
        depth = math.ceil(math.log2(workers))
        match self.kind:
            case "allreduce":
                return max(2 * (depth if tree else workers - 1), 1)
            case "broadcast":
                return max(depth, 1)
        return max(workers - 1, 1)


def collectives(protocol: str, count: int, workers: int, codec: Codec, sum_codec: Codec) -> list[Collective]:
    """The collectives of the exchange of one vector, in their order.

    Args:
        protocol: ``ring``, ``allgather``, ``parameter_server`` or ``sharded_server``.
        count: numbers in the vector.
        workers: M.
        codec: encodes what workers send.
        sum_codec: encodes the sum, where a server sends it.
    """
    sent, returned = codec.message_bytes(count), sum_codec.message_bytes(count)
    if protocol == "ring":
        if isinstance(codec, Cast):
            return [Collective("allreduce", sent)]
        assert isinstance(codec, Quantized)
        lanes = lanes_for(codec.quantizer, workers)
        words = -(-count // lanes.count) * lanes.word.itemsize
        return [Collective("allreduce", 4 * codec.quantizer.blocks(count)), Collective("allreduce", words)]
    if protocol == "allgather":
        return [Collective("allgather", sent)]
    if protocol == "parameter_server":
        return [Collective("gather", sent), Collective("broadcast", returned)]
    shard = shard_length(count, workers, codec, sum_codec)
    rows = workers * codec.message_bytes(shard)
    return [Collective("alltoall", rows), Collective("allgather", sum_codec.message_bytes(shard))]


def traffic(crossing: Iterable[Collective], workers: int) -> Traffic:
    """Bytes of several collectives among ``workers`` workers."""
    return sum((collective.traffic(workers) for collective in crossing), start=Traffic(0, 0, 0))
