"""The sweep over sizes of communication.py: times every operation at every size on this worker."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from communication_exchanges import SWEPT, Gradients
from communication_jobs import ExchangesOfJobs
from communication_operations import OPERATIONS, WORD, Collectives, ExchangesAtSizes, Maker, Source
from communication_peers import Peers
from communication_rows import row_of
from communication_samples import Samples, warm_up
from mpi_rows import mpi_operations
from quiet import Processors, describe

from hpcdat.distributed.communicator import Communicator
from hpcdat.distributed.environment import describe_environment
from hpcdat.doctor.facts import clock_offsets, clock_stamps
from hpcdat.emulation.cluster import emulated_links
from hpcdat.hardware.fabric import read_interfaces, read_ports
from hpcdat.hardware.network_cards import network_cards
from hpcdat.performance.benchmark_file import BenchmarkFile, Row

T = TypeVar("T")

ROUNDS = 20
"""Rounds of a measurement with as many repetitions or more. In each, all rows are measured, in another order:
what stays the same from one repetition to the next and differs between runs differs between rounds, too."""
SECONDS_BETWEEN_LINES = 5.0
"""Shortest time between two reports on progress."""


@dataclass(frozen=True)
class Sweep:
    """What is measured.

    Attributes:
        sizes: bytes of the operations.
        operations: those of :data:`OPERATIONS` to time.
        warm_up: runs before the timed ones of each round; also those of an untimed round before the first.
        repetitions: timed runs, in all rounds together.
    """

    sizes: tuple[int, ...]
    operations: tuple[str, ...] = OPERATIONS
    warm_up: int = 1
    repetitions: int = 20

    @property
    def per_round(self) -> int:
        """Timed runs of a row in a round; the last round may have fewer."""
        return max(1, self.repetitions // ROUNDS)

    @property
    def rounds(self) -> list[int]:
        """Timed runs of a row in each round; 0 in the untimed one."""
        full, rest = divmod(self.repetitions, self.per_round)
        untimed = [0] if self.warm_up else []
        return [*untimed, *[self.per_round] * full, *([rest] if rest else [])]


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
    samples, used = _measure(workers, device, wanted, sources, clocks)
    rows: list[Row] = []
    uncounted: set[str] = set()
    for each in samples:
        reports = workers.gather_object(each.report(), "samples")
        if workers.is_rank0:
            rows.append(row_of(each.operation, reports, wanted.per_round))
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
    notes.append(describe(used, rows))
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


def _measure(
    workers: Communicator, device: torch.device, wanted: Sweep, sources: Sequence[Source], clocks: Clocks
) -> tuple[list[Samples], list[dict[str, Any]]]:
    """Run all rounds on this worker.

    Only the operation that runs has buffers: those of all sizes together could be too large.

    Returns:
        The samples of every row, by size and operation; what all workers and machines have computed in the
        timed rounds.
    """
    samples: dict[str, Samples] = {}
    progress, processors = Progress(wanted, silent=not workers.is_rank0), None

    def visit(make: Maker, number: int, measured: set[str]) -> None:
        """Measure an operation in a round, if it has not been; its buffers are freed at the end."""
        operation, repetitions = make(), wanted.rounds[number]
        key = json.dumps(operation.parameters)
        if key in measured:
            # Small sizes may be rounded up to the same one.
            return
        measured.add(key)
        warm_up(operation, wanted.warm_up)
        if key not in samples:
            samples[key] = Samples(workers, device, operation)
        if repetitions:
            last = number == len(wanted.rounds) - 1
            samples[key].take(operation, repetitions, clocks.ahead[workers.rank], checked=last)

    for number, repetitions in enumerate(wanted.rounds):
        if repetitions and processors is None:
            # Not from the start: compilers, which run in the untimed round, are processes of their own.
            processors = Processors()
        clocks.compare()
        measured: set[str] = set()
        for size in in_order(wanted.sizes, number):
            progress.show(number, size)
            makers = [make for source in sources for make in source.at(size, wanted.operations)]
            for make in in_order(makers, number, size):
                visit(make, number, measured)
    assert processors is not None
    return list(samples.values()), workers.all_gather_object(processors.report(), "processors")


def in_order(things: Sequence[T], number: int, size: int = 0) -> list[T]:
    """The order of things in a round, the same on all workers: as they are in the first one, then shuffled.

    Args:
        things: sizes, or what is measured at one of them.
        number: of the round, from 0.
        size: at which they are measured, so that each size has an order of its own.
    """
    if number == 0:
        return list(things)
    return [things[place] for place in np.random.default_rng([number, size]).permutation(len(things))]


class Progress:
    """Lines on stderr about how far the sweep is.

    Args:
        wanted: what is measured.
        silent: whether to write nothing.
    """

    def __init__(self, wanted: Sweep, *, silent: bool) -> None:
        self._untimed, self._rounds = wanted.rounds.count(0), len(wanted.rounds)
        self._silent, self._written = silent, -math.inf
        self._began: list[float] = []

    def show(self, number: int, size: int) -> None:
        """Report that a round has come to a size, unless there has just been a line."""
        clock = time.monotonic()
        if number == len(self._began):
            self._began.append(clock)
        if self._silent or clock - self._written < SECONDS_BETWEEN_LINES:
            return
        self._written, done = clock, number - self._untimed
        line = f"round {done + 1} of {self._rounds - self._untimed}" if done >= 0 else "warm-up"
        if done > 0:
            this_round = self._began[number]
            expected = (this_round - self._began[self._untimed]) / done * (self._rounds - number)
            line += f", about {max(math.ceil(expected - clock + this_round), 1):,} s left"
        print(f"{line}: {size:,} bytes", file=sys.stderr, flush=True)


def _sources(workers: Communicator, device: torch.device) -> tuple[list[Source], list[str]]:
    """What yields the operations of one size, and notes on what is missing."""
    gradients = Gradients(workers, device)
    mpi, notes = mpi_operations(gradients)
    peers = [Peers(gradients)] if workers.engine != "none" else []
    return [*mpi, Collectives(gradients), *peers, ExchangesAtSizes(gradients, SWEPT)], notes


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
