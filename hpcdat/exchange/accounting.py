"""Bytes that an exchange puts on the network, counted from its messages.

As the DAT paper counts them ("MB per iteration": MiB that all workers together send), and for the
busiest network card. Frames, headers and acknowledgements of the transport are not counted: they add
3 to 6 % on Ethernet.
"""

from __future__ import annotations

from dataclasses import dataclass

from hpcdat.exchange.codecs import Cast, Codec
from hpcdat.exchange.protocols import lanes_for


@dataclass(frozen=True)
class Traffic:
    """Bytes of one exchange.

    Attributes:
        total: sent by all workers together.
        busiest: sent or received, whichever is more, by the worker that has most.
    """

    total: float
    busiest: float

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.total + other.total, self.busiest + other.busiest)


def all_reduce_traffic(size: float, workers: int) -> Traffic:
    """A ring all-reduce of so many bytes: each worker sends and receives 2 (M - 1) / M of them."""
    total = 2 * (workers - 1) * size
    return Traffic(total, total / workers)


def traffic(protocol: str, count: int, workers: int, codec: Codec, back: Codec) -> Traffic:
    """Of the exchange of one vector.

    Args:
        protocol: ``ring``, ``allgather``, ``parameter_server`` or ``sharded_server``.
        count: numbers in the vector.
        workers: M.
        codec: of what the workers send.
        back: of the sum, where a server sends it.
    """
    others = workers - 1
    sent, returned = codec.message_bytes(count), back.message_bytes(count)
    if protocol == "ring":
        if isinstance(codec, Cast):
            return all_reduce_traffic(sent, workers)
        lanes = lanes_for(codec.quantizer, workers)
        words = -(-count // lanes.count) * lanes.word.itemsize
        return all_reduce_traffic(words + 4 * codec.quantizer.blocks(count), workers)
    if protocol == "allgather":
        return Traffic(workers * others * sent, others * sent)
    if protocol == "parameter_server":
        return Traffic(others * (sent + returned), others * max(sent, returned))
    return Traffic(others * (sent + returned), others * (sent + returned) / workers)
