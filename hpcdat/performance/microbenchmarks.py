"""Short measurements of the links and the codecs, the inputs of the cost model."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor

from hpcdat.config.sections import Exchange
from hpcdat.distributed.communicator import JSON, Communicator, Pending
from hpcdat.distributed.device import synchronize
from hpcdat.distributed.single_process import Completed
from hpcdat.exchange.pipeline import IN_FLIGHT
from hpcdat.exchange.protocols import Draw
from hpcdat.exchange.resolve import Plan, make_plan
from hpcdat.exchange.traffic import Collective, Kind
from hpcdat.performance.cost_model import Link, Network

MIN_REPEATS, MAX_REPEATS = 3, 11
"""Number of repetitions of a measurement; short ones are repeated more often."""
MESSAGE_SIZES = [2**16, 2**18, 2**20, 2**22, 2**24]
"""Bytes through the busiest card; larger ones are not measured once a series takes MEASURING_SECONDS."""
MIN_SERIES_BYTES = 2**21
"""Smallest volume of a series of messages: the buffers of switches let the first messages pass at once."""
MEASURING_SECONDS = 0.5
"""Time for which one measurement is repeated."""
VECTOR_LENGTH = 2**19
"""Numbers in the vector with which computation is timed."""
MAX_SIMULATED_SENDERS = 64
"""Largest number of senders whose codes are decoded in a measurement; times for more are extrapolated."""
Rate = Callable[[Exchange, int], float]
"""Seconds per number that a worker spends on codes, by settings and number of senders."""


def measure_network(workers: Communicator, kinds: Iterable[Kind], device: torch.device) -> Network:
    """Time every kind of collective, small and large, and how much computation slows them down.

    All workers call this together. On one machine every worker counts as a node.

    Args:
        workers: two or more.
        kinds: of collectives.
        device: of the messages.

    Returns:
        Medians of the slowest worker's times, the same on all workers.
    """
    nodes = workers.nodes if workers.nodes > 1 else workers.size
    per_node = -(-workers.size // nodes)
    links = {kind: _measure_link(workers, kind, nodes, per_node, device) for kind in kinds}
    sharing = _measure_sharing(workers, links["allreduce"], nodes, per_node, device)
    return Network(nodes=nodes, per_node=per_node, links=links, sharing=sharing)


def _measure_sharing(
    workers: Communicator, link: Link, nodes: int, per_node: int, device: torch.device
) -> float:
    """Fraction of a computation that does not overlap with an all-reduce of about the same duration."""
    carried = link.points[-1][0]
    size = max(int(carried / Collective("allreduce", 1).on_card(nodes, per_node)), 4 * workers.size)
    vector = torch.randn(VECTOR_LENGTH, device=device, generator=torch.Generator(device).manual_seed(0))
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
    # The fraction of a message that passes through the busiest card.
    share = Collective(kind, 1).on_card(nodes, per_node)
    points: list[tuple[float, float]] = []
    for carried in (0, *MESSAGE_SIZES):
        size = max(int(carried / share), 4 * workers.size)
        count = max(IN_FLIGHT, MIN_SERIES_BYTES // carried if carried else 0)

        def series(size: int = size, count: int = count) -> None:
            """Messages with as many in progress as in an exchange."""
            waiting: deque[Pending] = deque()
            for number in range(count):
                if len(waiting) == IN_FLIGHT:
                    waiting.popleft().wait()
                waiting.append(_start(workers, kind, size, device, number % IN_FLIGHT))
            for pending in waiting:
                pending.wait()

        duration = _seconds(workers, series)
        points.append((carried, duration / count))
        if duration > MEASURING_SECONDS and carried:
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
    """Median time on the slowest worker of work that all do at once, after one run to open connections."""

    def once() -> float:
        began = time.perf_counter()
        work()
        # Gathering the times also synchronises the workers for the next run.
        return float(max(workers.all_gather_object(time.perf_counter() - began, "probe: seconds")))

    workers.all_gather_object(None, "probe: ready")
    once()
    first = once()
    return median([first, *(once() for _ in range(repeats_for(first) - 1))])


def repeats_for(seconds: float, together: float = MEASURING_SECONDS, most: int = MAX_REPEATS) -> int:
    """Number of repetitions of a measurement.

    Args:
        seconds: duration of one repetition.
        together: duration of all repetitions.
        most: upper bound; the lower one is MIN_REPEATS.
    """
    return min(max(int(together / seconds), MIN_REPEATS), most)


class SimulatedCommunicator(Communicator):
    """One of M workers whose messages take no time, to measure what a protocol computes.

    Gathered messages and values are M copies of this worker's own. Sums and maxima, which the network
    computes, are its own values.

    Args:
        size: M.
    """

    def __init__(self, size: int) -> None:
        super().__init__("none")
        self.rank, self.size, self.nodes = 0, size, size
        self.local_rank, self.local_size = 0, 1
        self.node_of = list(range(size))
        self.transport = "none"

    def iall_reduce(self, tensors: Sequence[Tensor], name: str) -> Pending:  # noqa: D102
        return Completed(tensors)

    def iall_reduce_max(self, tensor: Tensor, name: str) -> Pending:  # noqa: D102
        return Completed(tensor.clone())

    def iall_to_all(self, rows: Tensor, name: str) -> Pending:  # noqa: D102
        return Completed(rows)

    def iall_gather(self, row: Tensor, name: str) -> Pending:  # noqa: D102
        return Completed(row.expand(self.size, *row.shape).contiguous())

    def ibroadcast(self, tensor: Tensor, name: str) -> Pending:  # noqa: D102
        return Completed(tensor)

    def iall_to_all_v(self, rows: Tensor, counts: Sequence[int], name: str) -> Pending:  # noqa: D102
        return Completed(torch.cat([rows[: counts[0]]] * self.size))

    def all_gather_object(self, value: JSON, name: str) -> list[Any]:  # noqa: D102
        return [json.loads(json.dumps(value)) for _ in range(self.size)]

    def split(self, groups: Sequence[int]) -> Communicator:  # noqa: D102
        return SimulatedCommunicator(list(groups).count(groups[0]))

    def close(self) -> None:  # noqa: D102
        pass


def coding_rate(workers: Communicator, device: torch.device, *, compiled: bool) -> Rate:
    """Seconds per number that a worker spends on codes, as a function of settings and number of senders.

    It is measured at the first call with given arguments.

    Args:
        workers: all measure at the same time, as they will compute in training.
        device: to compute on.
        compiled: whether codecs are compiled.
    """
    known: dict[str, float] = {}

    def rate(exchange: Exchange, senders: int) -> float:
        simulated = min(senders, MAX_SIMULATED_SENDERS)
        plan = make_plan(exchange, SimulatedCommunicator(simulated), compiled=compiled)
        if plan.is_exact:
            return 0.0
        key = f"{simulated} {exchange.model_dump_json(exclude={'bucket_mb', 'overlap'})}"
        if key not in known:
            known[key] = _measure_computing(plan, workers, device)
        # Where one worker decodes the codes of all, the time is proportional to the number of senders.
        proportional = plan.name in ("allgather", "parameter_server")
        return known[key] * (senders / simulated if proportional else 1.0)

    return rate


def _measure_computing(plan: Plan, workers: Communicator, device: torch.device) -> float:
    """Seconds per number that a worker (the server, if there is one) spends on codes in an exchange.

    All workers call this together and compute at the same time, as in training.

    Args:
        plan: for a :class:`SimulatedCommunicator`.
        workers: all workers.
        device: of the vector.
    """
    vector = torch.randn(VECTOR_LENGTH, device=device, generator=torch.Generator(device).manual_seed(0))
    target = torch.empty_like(vector)
    times = []
    # A compiled codec is compiled for the first length, and at the second one for all lengths.
    for number, count in enumerate((VECTOR_LENGTH // 2, *[VECTOR_LENGTH] * (1 + MIN_REPEATS))):
        draw = Draw(0, 0, number, 0, device)
        workers.all_gather_object(None, "probe: ready to compute")
        synchronize(device)
        began = time.perf_counter()
        # As in an exchange of gradients: copy them into a vector, and the sum back into the gradients.
        result = _run_simulated(plan, torch.cat([vector[:count]]), draw)
        torch._foreach_copy_([target[:count]], [result])
        synchronize(device)
        times.append(time.perf_counter() - began)
    every = workers.all_gather_object(times[2:], "probe: computing")
    slowest: list[float] = [max(worker[repeat] for worker in every) for repeat in range(MIN_REPEATS)]
    return median(slowest) / VECTOR_LENGTH


def _run_simulated(plan: Plan, vector: Tensor, draw: Draw) -> Tensor:
    steps = plan.protocol(SimulatedCommunicator(plan.senders), vector, draw, "simulated", None)
    result: Any = None
    while True:
        try:
            result = steps.send(result).wait()
        except StopIteration as end:
            total: Tensor = end.value
            return total
