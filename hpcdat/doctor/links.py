"""The links between nodes: a probe of one pair after the other, and which of them are slow."""

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

ALL_PAIRS = 16
"""Nodes up to which every pair is measured; with more, each node and its successor."""
TINY_MESSAGES = 9
SIZES: list[int] = [2**k for k in range(16, 29)]
"""Bytes of a message, tried until they take long enough."""
LONG_ENOUGH, LATENCIES = 0.06, 4
"""Seconds, and times the latency, so that it is the bandwidth that takes them."""


@dataclass(frozen=True)
class Pair:
    """The link between two nodes.

    Attributes:
        one, other: their hosts.
        latency: seconds that a message of one byte takes, half of its way there and back.
        bandwidth: bytes a second, mean of the way there and the way back.
    """

    one: str
    other: str
    latency: float
    bandwidth: float

    def __str__(self) -> str:
        return f"{self.one} - {self.other}"


def pairs_of(nodes: int) -> list[tuple[int, int]]:
    """The pairs that are measured: all, or each node and its successor where these are too many."""
    if nodes > ALL_PAIRS:
        return [(node, (node + 1) % nodes) for node in range(nodes)]
    return list(combinations(range(nodes), 2))


def measure_pairs(
    workers: Communicator,
    hosts: Sequence[str],
    firsts: Sequence[int],
    device: torch.device,
    stop: StopRequest,
) -> list[Pair]:
    """One pair after the other, so that none disturbs another; the same on all workers.

    Args:
        workers: all of them call this together.
        hosts: of the nodes.
        firsts: of each node the worker that speaks for it.
        device: where the messages are.
        stop: the user's wish to stop, looked at before each pair.

    Raises:
        Stopped: a stop was asked for.
        WorkerError: a worker was lost.
    """
    places = pairs_of(len(hosts))

    def measure(one: int, other: int) -> Pair:
        if any(workers.all_gather_object(stop.requested, "whether to stop")):
            raise Stopped("stopped before all links were measured", everywhere=True)

        here, there = firsts[one], firsts[other]

        def one_way(size: int) -> float:
            # One direction at a time: of two, each keeps the other's acknowledgements waiting.
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
    # What else a node was busy with at that moment is no reason to accuse its link.
    for number, pair in enumerate(pairs):
        if pair in slow_pairs(pairs):
            pairs[number] = max(pair, measure(*places[number]), key=lambda pair: pair.bandwidth)
    return pairs


def _bandwidth(one_way: Callable[[int], float], latency: float) -> float:
    for size in SIZES:
        seconds = one_way(size)
        if seconds > max(LONG_ENOUGH, LATENCIES * latency):
            break
    return size / min(seconds, one_way(size), one_way(size))


def best_of(pairs: Sequence[Pair]) -> dict[str, float]:
    """Bytes a second that each host reaches with its best peer."""
    best: dict[str, float] = {}
    for pair in pairs:
        for host in (pair.one, pair.other):
            best[host] = max(best.get(host, 0), pair.bandwidth)
    return best


def slow_pairs(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs slower than half of the usual, slowest first.

    The usual is the median over the nodes of what each reaches with its best peer. Not the median over
    the pairs: where one node of three has a slow link, so have two of the three pairs.
    """
    usual = median(best_of(pairs).values())
    return sorted((pair for pair in pairs if pair.bandwidth < usual / 2), key=lambda pair: pair.bandwidth)
