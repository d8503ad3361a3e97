"""What the cost model is fed with: a short measurement of the real links and of the codecs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from statistics import median
from typing import Any

import torch
from torch import Tensor

from hpcdat.cluster.workers import Done, Pending, Workers
from hpcdat.exchange.accounting import Collective, Kind
from hpcdat.exchange.cost import Link
from hpcdat.exchange.plan import Plan
from hpcdat.exchange.protocols import Draw

REPEATS = 3
SIZES = [2**16, 2**18, 2**20, 2**22, 2**24]
"""Bytes through the busiest card, tried until one takes long enough."""
LONG_ENOUGH = 0.3
"""Seconds."""
NUMBERS = 2**19
"""In the vector that the computation is timed with."""


def measure_links(workers: Workers, kinds: Iterable[Kind], device: torch.device) -> dict[Kind, Link]:
    """Time every kind of collective, small and large; all workers call this together.

    Args:
        workers: who take part, two or more.
        kinds: of collectives.
        device: where the messages lie.

    Returns:
        The same on all workers: medians of the slowest worker's times.
    """
    return {kind: _measure_link(workers, kind, device) for kind in kinds}


def _measure_link(workers: Workers, kind: Kind, device: torch.device) -> Link:
    # What of a message passes the busiest card.
    share = Collective(kind, 1).traffic(workers.size).busiest
    points: list[tuple[float, float]] = []
    for carried in (0, *SIZES):
        size = max(int(carried / share), 4 * workers.size)
        spent = _seconds(workers, lambda size=size: _start(workers, kind, size, device))
        points.append((carried, spent))
        if spent > LONG_ENOUGH:
            break
    return Link(points=points)


def _start(workers: Workers, kind: Kind, size: int, device: torch.device) -> Pending:
    name = f"probe of {kind}"
    if kind == "allreduce":
        return workers.start_sum([torch.zeros(size // 4, device=device)], name)
    row = torch.zeros(size, dtype=torch.uint8, device=device)
    if kind == "alltoall":
        return workers.start_alltoall(row[: size // workers.size * workers.size].view(workers.size, -1), name)
    start = {
        "allgather": workers.start_allgather,
        "gather": workers.start_gather,
        "broadcast": workers.start_broadcast,
    }[kind]
    return start(row, name)


def _seconds(workers: Workers, start: Callable[[], Pending]) -> float:
    """Of a collective on the slowest worker: the median, after one that opens connections."""
    times = []
    for _ in range(1 + REPEATS):
        workers.gather(None, "probe: ready")
        began = time.perf_counter()
        start().wait()
        times.append(time.perf_counter() - began)
    every = workers.gather(times[1:], "probe: times")
    return median(max(worker[repeat] for worker in every) for repeat in range(REPEATS))


class Imagined(Workers):
    """One worker of many, to whom the others send what it sends itself, at once.

    What a protocol still takes among them is its computation.

    Args:
        size: M.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.node_of = list(range(size))

    def start_allgather(self, row: Tensor, name: str) -> Pending:  # noqa: D102
        return Done(row.expand(self.size, *row.shape).contiguous())

    def start_gather(self, row: Tensor, name: str) -> Pending:  # noqa: D102
        return self.start_allgather(row, name)


def measure_computing(plan: Plan, workers: Workers, device: torch.device) -> float:
    """Seconds a number that a worker, the server where there is one, computes in an exchange.

    All workers call this together and compute at the same time, as they will in training.

    Args:
        plan: made for :class:`Imagined` workers, as many as there are.
        workers: who take part.
        device: where the vector lies.
    """
    vector = torch.randn(NUMBERS, device=device, generator=torch.Generator(device).manual_seed(0))
    times = []
    # Compiled codecs learn one length first, and at the second one all of them.
    for number, count in enumerate((NUMBERS // 2, *[NUMBERS] * (1 + REPEATS))):
        draw = Draw(0, 0, number, 0, device)
        workers.gather(None, "probe: ready to compute")
        _finish(device)
        began = time.perf_counter()
        _play(plan, vector[:count], draw)
        _finish(device)
        times.append(time.perf_counter() - began)
    every = workers.gather(times[2:], "probe: computing")
    return median(max(worker[repeat] for worker in every) for repeat in range(REPEATS)) / NUMBERS


def _play(plan: Plan, vector: Tensor, draw: Draw) -> Tensor:
    steps = plan.protocol(Imagined(plan.senders), vector, draw, "imagined", None)
    result: Any = None
    while True:
        try:
            result = steps.send(result).wait()
        except StopIteration as end:
            return end.value


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
