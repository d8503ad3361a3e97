"""What the cost model is fed with: a short measurement of the real links and of the codecs."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from statistics import median
from typing import Any

import torch
from torch import Tensor

from hpcdat.config.sections import Exchange
from hpcdat.distributed.communicator import Communicator, Pending
from hpcdat.distributed.device import synchronize
from hpcdat.distributed.single_process import Completed, SingleProcess
from hpcdat.exchange.pipeline import IN_FLIGHT
from hpcdat.exchange.protocols import Draw
from hpcdat.exchange.resolve import Plan, make_plan
from hpcdat.exchange.traffic import Collective, Kind
from hpcdat.performance.cost_model import Link, Network

REPEATS, MOST_REPEATS = 3, 11
"""How often something is timed at least and at most: the more often, the shorter it takes."""
SIZES = [2**16, 2**18, 2**20, 2**22, 2**24]
"""Bytes through the busiest card, tried until a series of them takes long enough."""
SERIES = 2**21
"""Bytes of a series, if IN_FLIGHT messages are not more: switches let the first ones pass at once."""
LONG_ENOUGH = 0.5
"""Seconds."""
NUMBERS = 2**19
"""In the vector that the computation is timed with."""
MOST_SENDERS = 64
"""Whose codes a worker is made to decode in a measurement; for more it is extrapolated."""
Rate = Callable[[Exchange, int], float]
"""Seconds a number that a worker computes, by settings and senders."""


def measure_network(workers: Communicator, kinds: Iterable[Kind], device: torch.device) -> Network:
    """Time every kind of collective, small and large, and what computing beside them costs.

    All workers call this together. On one machine every worker is taken for a node of its own.

    Args:
        workers: who take part, two or more.
        kinds: of collectives.
        device: where the messages lie.

    Returns:
        The same on all workers: medians of the slowest worker's times.
    """
    nodes = workers.nodes if workers.nodes > 1 else workers.size
    per_node = -(-workers.size // nodes)
    links = {kind: _measure_link(workers, kind, nodes, per_node, device) for kind in kinds}
    sharing = _measure_sharing(workers, links["allreduce"], nodes, per_node, device)
    return Network(nodes=nodes, per_node=per_node, links=links, sharing=sharing)


def _measure_sharing(
    workers: Communicator, link: Link, nodes: int, per_node: int, device: torch.device
) -> float:
    """Of computation beside an all-reduce that takes about as long: the share that is not hidden."""
    carried = link.points[-1][0]
    size = max(int(carried / Collective("allreduce", 1).on_card(nodes, per_node)), 4 * workers.size)
    vector = torch.randn(NUMBERS, device=device, generator=torch.Generator(device).manual_seed(0))
    turns = 1

    def compute() -> None:
        for _ in range(turns):
            vector.mul(1.5).round_().clamp_(-127, 127).to(torch.int8)
        synchronize(device)

    def both() -> None:
        pending = _start(workers, "allreduce", size, device)
        compute()
        pending.wait()

    wire = _seconds(workers, lambda: _start(workers, "allreduce", size, device).wait())
    turns = max(1, round(wire / max(_seconds(workers, compute), 1e-6)))
    computing, together = _seconds(workers, compute), _seconds(workers, both)
    hidden = max(wire, computing) + min(wire, computing) - together
    return min(max(1 - hidden / min(wire, computing), 0.0), 1.0)


def _measure_link(workers: Communicator, kind: Kind, nodes: int, per_node: int, device: torch.device) -> Link:
    # What of a message passes the busiest card.
    share = Collective(kind, 1).on_card(nodes, per_node)
    points: list[tuple[float, float]] = []
    for carried in (0, *SIZES):
        size = max(int(carried / share), 4 * workers.size)
        count = max(IN_FLIGHT, SERIES // carried if carried else 0)

        def series(size: int = size, count: int = count) -> None:
            """As many under way as in an exchange."""
            waiting: deque[Pending] = deque()
            for number in range(count):
                if len(waiting) == IN_FLIGHT:
                    waiting.popleft().wait()
                waiting.append(_start(workers, kind, size, device, number % IN_FLIGHT))
            for pending in waiting:
                pending.wait()

        spent = _seconds(workers, series)
        points.append((carried, spent / count))
        if spent > LONG_ENOUGH and carried:
            break
    return Link(points=points)


def _start(workers: Communicator, kind: Kind, size: int, device: torch.device, number: int = 0) -> Pending:
    name = f"probe of {kind} {number}"
    if kind == "allreduce":
        return workers.iall_reduce([torch.zeros(size // 4, device=device)], name)
    row = torch.zeros(size, dtype=torch.uint8, device=device)
    if kind == "alltoall":
        return workers.iall_to_all(row[: size // workers.size * workers.size].view(workers.size, -1), name)
    start = {
        "allgather": workers.iall_gather,
        "gather": workers.igather,
        "broadcast": workers.ibroadcast,
    }[kind]
    return start(row, name)


def _seconds(workers: Communicator, work: Callable[[], object]) -> float:
    """Of work that all do at once, on the slowest worker: the median, after one that opens connections."""

    def once() -> float:
        began = time.perf_counter()
        work()
        # All are ready for the next one when they know what this one took.
        return float(max(workers.all_gather_object(time.perf_counter() - began, "probe: seconds")))

    workers.all_gather_object(None, "probe: ready")
    once()
    first = once()
    return median([first, *(once() for _ in range(repeats_for(first) - 1))])


def repeats_for(seconds: float, together: float = LONG_ENOUGH, most: int = MOST_REPEATS) -> int:
    """How often something is timed that takes so long, to last so long together, and at most so often."""
    return min(max(int(together / seconds), REPEATS), most)


class Imagined(SingleProcess):
    """One worker of many, to whom the others send what it sends itself, at once.

    What a protocol still takes among them is its computation.

    Args:
        size: M.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = self.nodes = size
        self.node_of = list(range(size))

    def iall_gather(self, row: Tensor, name: str) -> Pending:  # noqa: D102
        return Completed(row.expand(self.size, *row.shape).contiguous())

    def igather(self, row: Tensor, name: str) -> Pending:  # noqa: D102
        return self.iall_gather(row, name)


def coding_rate(workers: Communicator, device: torch.device, *, compiled: bool) -> Rate:
    """Seconds a number that a worker computes in an exchange among so many senders, measured once for each.

    Args:
        workers: who all measure at once, as they will compute.
        device: where.
        compiled: whether codecs are.
    """
    known: dict[str, float] = {}

    def rate(exchange: Exchange, senders: int) -> float:
        played = min(senders, MOST_SENDERS)
        plan = make_plan(exchange, Imagined(played), compiled=compiled)
        if plan.is_exact:
            return 0.0
        key = f"{played} {exchange.model_dump_json(exclude={'bucket_mb', 'overlap'})}"
        if key not in known:
            known[key] = _measure_computing(plan, workers, device)
        # Where one decodes all codes of all, it takes as many times as long for as many times the senders.
        grows = plan.name in ("allgather", "parameter_server")
        return known[key] * (senders / played if grows else 1.0)

    return rate


def _measure_computing(plan: Plan, workers: Communicator, device: torch.device) -> float:
    """Seconds a number that a worker, the server where there is one, computes in an exchange.

    All workers call this together and compute at the same time, as they will in training.

    Args:
        plan: made for :class:`Imagined` workers, as many as there are.
        workers: who take part.
        device: where the vector lies.
    """
    vector = torch.randn(NUMBERS, device=device, generator=torch.Generator(device).manual_seed(0))
    target = torch.empty_like(vector)
    times = []
    # Compiled codecs learn one length first, and at the second one all of them.
    for number, count in enumerate((NUMBERS // 2, *[NUMBERS] * (1 + REPEATS))):
        draw = Draw(0, 0, number, 0, device)
        workers.all_gather_object(None, "probe: ready to compute")
        synchronize(device)
        began = time.perf_counter()
        # As an exchange of gradients does: into one vector, and back into their places.
        result = _play(plan, torch.cat([vector[:count]]), draw)
        torch._foreach_copy_([target[:count]], [result])
        synchronize(device)
        times.append(time.perf_counter() - began)
    every = workers.all_gather_object(times[2:], "probe: computing")
    slowest: list[float] = [max(worker[repeat] for worker in every) for repeat in range(REPEATS)]
    return median(slowest) / NUMBERS


def _play(plan: Plan, vector: Tensor, draw: Draw) -> Tensor:
    steps = plan.protocol(Imagined(plan.senders), vector, draw, "imagined", None)
    result: Any = None
    while True:
        try:
            result = steps.send(result).wait()
        except StopIteration as end:
            total: Tensor = end.value
            return total
