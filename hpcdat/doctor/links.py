"""Measure the links between nodes, pair by pair, and find the slow ones."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median

import torch

from hpcdat.distributed.communicator import Communicator
from hpcdat.distributed.stop_signals import StopRequest
from hpcdat.errors import Stopped

MAX_NODES_FOR_ALL_PAIRS = 16
"""Largest number of nodes for which all pairs are measured; with more, each node and its successor."""
TINY_MESSAGES = 9
"""One-byte round trips per link, whose median gives the latency."""
MESSAGE_SIZES: list[int] = [2**k for k in range(16, 29)]
"""Message sizes in bytes, tried in this order until one takes long enough."""
MIN_SECONDS, MIN_LATENCIES = 0.06, 4
"""A message is long enough if it takes this many seconds and latencies: bandwidth then dominates."""


@dataclass(frozen=True)
class Pair:
    """The link between two nodes.

    Attributes:
        one, other: their hosts.
        latency: half the round-trip time of one byte, in seconds.
        bandwidth: bytes per second, mean of both directions.
    """

    one: str
    other: str
    latency: float
    bandwidth: float

    def __str__(self) -> str:
        return f"{self.one} - {self.other}"


def pairs_of(nodes: int) -> list[tuple[int, int]]:
    """The pairs to measure: each node and its successor, or all up to :data:`MAX_NODES_FOR_ALL_PAIRS`."""
    if nodes > MAX_NODES_FOR_ALL_PAIRS:
        return [(node, (node + 1) % nodes) for node in range(nodes)]
    return list(combinations(range(nodes), 2))


def measure_pairs(
    workers: Communicator,
    hosts: Sequence[str],
    firsts: Sequence[int],
    device: torch.device,
    stop: StopRequest,
) -> list[Pair]:
    """Measure one pair after the other, so that the measurements do not compete for links.

    Args:
        workers: all of them call this together.
        hosts: of the nodes.
        firsts: the rank on each node that sends and receives.
        device: device of the messages.
        stop: stop request, checked before each pair.

    Returns:
        The links, the same on all workers.

    Raises:
        Stopped: a stop was requested.
        WorkerError: a worker was lost.
    """
    places = pairs_of(len(hosts))

    def measure(one: int, other: int) -> Pair:
        if any(workers.all_gather_object(stop.requested, "whether to stop")):
            raise Stopped("stopped before all links were measured", everywhere=True)

        here, there = firsts[one], firsts[other]

        def one_way(size: int) -> float:
            # One direction at a time: simultaneous transfers delay each other's acknowledgements.
            row = torch.ones(size, dtype=torch.uint8, device=device)
            workers.all_gather_object(None, "links: ready")
            began = time.perf_counter()
            workers.isend(row, here, there, "links: there").wait()
            workers.isend(row, there, here, "links: back").wait()
            seconds: float = workers.all_gather_object(time.perf_counter() - began, "links: seconds")[here]
            return seconds / 2

        latency = median(one_way(1) for _ in range(TINY_MESSAGES))
        return Pair(hosts[one], hosts[other], latency, _bandwidth(one_way, latency))

    if workers.is_rank0 and places:
        print(f"measuring {len(places)} link{'' if len(places) == 1 else 's'}", file=sys.stderr, flush=True)
    pairs = [measure(*place) for place in places]
    # Measure slow links again: the node may have been busy.
    for number, pair in enumerate(pairs):
        if pair in slow_pairs(pairs):
            pairs[number] = max(pair, measure(*places[number]), key=lambda pair: pair.bandwidth)
    return pairs


def _bandwidth(one_way: Callable[[int], float], latency: float) -> float:
    for size in MESSAGE_SIZES:
        seconds = one_way(size)
        if seconds > max(MIN_SECONDS, MIN_LATENCIES * latency):
            break
    return size / min(seconds, one_way(size), one_way(size))


def best_of(pairs: Sequence[Pair]) -> dict[str, float]:
    """Bytes per second that each host reaches with its best peer."""
    best: dict[str, float] = {}
    for pair in pairs:
        for host in (pair.one, pair.other):
            best[host] = max(best.get(host, 0), pair.bandwidth)
    return best


def slow_pairs(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs slower than half of the typical bandwidth, slowest first.

    The typical bandwidth is the median over the nodes of what each reaches with its best peer. The median
    over the pairs would not do: if one node of three has a slow link, two of the three pairs are slow.
    """
    typical = median(best_of(pairs).values())
    return sorted((pair for pair in pairs if pair.bandwidth < typical / 2), key=lambda pair: pair.bandwidth)
