"""The sweep over sizes of communication.py: times every operation at every size on this worker."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from communication_exchanges import SWEPT
from communication_jobs import ExchangesOfJobs
from communication_operations import OPERATIONS, WORD, Collectives, ExchangesAtSizes, Operation, Source
from communication_peers import Peers
from communication_rows import check, row_of
from mpi_rows import mpi_operations
from quiet import Processors, added, describe

from hpcdat.distributed.communicator import Communicator
from hpcdat.distributed.environment import describe_environment
from hpcdat.doctor.facts import clock_offsets, clock_stamps
from hpcdat.emulation.cluster import emulated_links
from hpcdat.hardware.fabric import read_interfaces, read_ports
from hpcdat.hardware.network_cards import Card, network_cards, sent_between
from hpcdat.performance.benchmark_file import BenchmarkFile, Row, Value
from hpcdat.performance.clock import now

INSIDE = "NVLink"
"""The kind of card that workers of one node use."""
SECONDS_FOR_LAST_PACKETS = 0.05
"""How long packets may take to leave a card after an operation has ended."""


@dataclass(frozen=True)
class Sweep:
    """What is measured.

    Attributes:
        sizes: bytes of the operations.
        operations: those of :data:`OPERATIONS` to time.
        warm_up: runs before those that are timed.
        repetitions: timed runs.
    """

    sizes: tuple[int, ...]
    operations: tuple[str, ...] = OPERATIONS
    warm_up: int = 5
    repetitions: int = 20


def sweep(
    workers: Communicator,
    device: torch.device,
    wanted: Sweep,
    rate: str | None,
    jobs: ExchangesOfJobs | None = None,
) -> BenchmarkFile | None:
    """Time every operation at every size; all workers call this together.

    Args:
        workers: two or more.
        device: of the buffers.
        wanted: what is measured.
        rate: of a node's card, as ``tc`` writes it; None: what the kernel reports.
        jobs: whose exchanges are measured in place of all else, at the sizes of their gradients.

    Returns:
        The measurement on worker 0, None on the others.
    """
    environment = describe_environment(workers, device)
    clocks = Clocks(workers)
    sources, notes = ([jobs], []) if jobs else _sources(workers, device)
    rows: list[Row] = []
    measured: list[dict[str, Value]] = []
    uncounted: set[str] = set()
    used: list[list[dict[str, Any]]] = []
    for size in wanted.sizes:
        if workers.is_rank0:
            print(f"{size:,} bytes", file=sys.stderr, flush=True)
        clocks.compare()
        for source in sources:
            for operation in source.at(size, wanted.operations):
                if operation.parameters in measured:
                    # Small sizes may be rounded up to the same one.
                    continue
                measured.append(operation.parameters)
                reports = workers.gather_object(measure(workers, device, operation, wanted), "samples")
                if workers.is_rank0:
                    rows.append(row_of(operation, reports, clocks.ahead))
                    used.append([one["used"] for one in reports])
                    uncounted.update(name for one in reports for name in one["uncounted"])
    slowest = slowest_card(workers)
    for source in sources:
        source.close()
    if not workers.is_rank0:
        return None
    notes += [clocks.note()] if clocks.note() else []
    if uncounted:
        notes.append(
            f"cards whose bytes nothing counts, left out of what was sent: {', '.join(sorted(uncounted))}"
        )
    if workers.nodes == 1 and all(row.figures["sent"] is None for row in rows):
        notes.append("bytes are not counted: workers of one node do not use its network cards")
    if {row.parameters["bytes"] for row in rows} - set(wanted.sizes):
        notes.append(
            f"sizes are rounded up to multiples of {WORD} bytes, those of all-gather and all-to-all to "
            f"multiples of {WORD * workers.size}"
        )
    of_workers = [added(reports) for reports in zip(*used, strict=True)]
    notes.append(describe(of_workers, [row.seconds for row in rows]))
    settings = {
        "workers": workers.size,
        "nodes": workers.nodes,
        "workers_per_node": workers.local_size,
        "engine": workers.engine,
        "transport": transport_of(workers, device, environment),
        "device": device.type,
        "repetitions": wanted.repetitions,
        "warm_up": wanted.warm_up,
        "rate": rate or slowest,
        "threads": torch.get_num_threads(),
        "clock_uncertainty": clocks.uncertainty,
    }
    return BenchmarkFile.of("communication", environment, settings, rows, notes=notes)


def _sources(workers: Communicator, device: torch.device) -> tuple[list[Source], list[str]]:
    """What yields the operations of one size, and notes on what is missing."""
    mpi, notes = mpi_operations(workers, device)
    peers = [Peers(workers, device)] if workers.engine != "none" else []
    return [*mpi, Collectives(workers, device), *peers, ExchangesAtSizes(workers, device, SWEPT)], notes


def transport_of(workers: Communicator, device: torch.device, environment: dict[str, Any]) -> str:
    """What carries the buffers."""
    if device.type == "cuda" and (workers.engine == "torch" or environment["horovod"]["nccl"]):
        return "NCCL"
    return workers.transport


def slowest_card(workers: Communicator) -> float | None:
    """Bytes per second of the slowest node's fastest card; None on one node, or where a node's is unknown."""
    rates = workers.all_gather_object(fastest_card(), "rates of cards")
    return None if workers.nodes == 1 or None in rates else min(rates)


def fastest_card(sys: Path = Path("/sys")) -> float | None:
    """Bytes per second, in one direction, of this node's fastest real network card; None if it is unknown.

    Args:
        sys: where sysfs is mounted.
    """
    counted = {card.name for card in network_cards(sys)}
    rates = {port.name: 1e9 * port.rate for port in read_ports(sys) if port.active and port.rate}
    for interface in read_interfaces(sys):
        # Virtual ones state a rate that is not real.
        if interface.up and interface.speed and interface.physical:
            rates[interface.name] = 1e6 * interface.speed
    return max((rate / 8 for name, rate in rates.items() if name in counted), default=None)


class Clocks:
    """How far the workers' clocks differ; all workers create it together."""

    def __init__(self, workers: Communicator) -> None:
        self._workers = workers
        # Emulated nodes have the clock of their machine.
        self._shared = workers.nodes == 1 or emulated_links() is not None
        self.ahead, self.uncertainty = [0.0] * workers.size, 0.0

    def compare(self) -> None:
        """Compare the clocks of several nodes; all workers call this together."""
        if not self._shared:
            self.ahead, bounds = (
                list(each) for each in zip(*clock_offsets(clock_stamps(self._workers)), strict=True)
            )
            self.uncertainty = max(self.uncertainty, *bounds)

    def note(self) -> str:
        """How certain arrivals are; empty with one clock."""
        if self._shared:
            return ""
        return f"the nodes' clocks are known to {1e3 * self.uncertainty:.3f} ms: skews are as uncertain"


def measure(
    workers: Communicator, device: torch.device, operation: Operation, wanted: Sweep
) -> dict[str, Any]:
    """Run an operation on this worker; what it has seen.

    Returns:
        Of each repetition ``seconds``, ``arrivals`` (seconds since the epoch when it began), ``events``
        (seconds by CUDA's events; empty on a CPU) and ``processor`` (seconds); ``used``, what was computed
        meanwhile; of the last result those of :func:`check`; and those of :func:`counted`.
    """
    on_gpu = operation.parameters["device"] == "cuda"
    report: dict[str, Any] = {"seconds": [], "arrivals": [], "events": [], "processor": []}
    for _ in range(wanted.warm_up):
        operation.reset()
        operation.align()
        operation.run()
    # Not from the start: compilers, which run in the warm-up, are processes of their own.
    cards, processors = cards_to_count(workers), Processors()
    for _ in range(wanted.repetitions):
        operation.reset()
        now(device)
        operation.align()
        report["arrivals"].append(time.time())
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if on_gpu else []
        processor, began = time.process_time(), now(device)
        for event in events[:1]:
            event.record()
        result = operation.run()
        for event in events[1:]:
            event.record()
        ended = now(device)
        report["seconds"].append(ended - began)
        report["processor"].append(time.process_time() - processor)
        if events:
            report["events"].append(events[0].elapsed_time(events[1]) / 1e3)
    report["used"] = processors.report()
    if cards:
        time.sleep(SECONDS_FOR_LAST_PACKETS)
    report |= check(result, operation.expected, operation.bound)
    report |= counted(cards, cards_to_count(workers), wanted.repetitions)
    return report


def cards_to_count(workers: Communicator) -> list[Card]:
    """The cards that this worker counts: those that its node's workers use, if it is the first one there."""
    if workers.local_rank:
        return []
    return [card for card in network_cards() if workers.nodes > 1 or card.kind == INSIDE]


def counted(before: list[Card], after: list[Card], repetitions: int) -> dict[str, Any]:
    """``sent``: bytes a repetition by kind of card; ``uncounted``: the cards that nothing counts."""
    kinds, sent = {card.name: card.kind for card in after}, sent_between(before, after)
    by_kind: dict[str, float] = {}
    for name, count in sent.items():
        if count is not None:
            by_kind[kinds[name]] = by_kind.get(kinds[name], 0) + count / repetitions
    return {"sent": by_kind, "uncounted": [name for name, count in sent.items() if count is None]}
