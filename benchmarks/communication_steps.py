"""What one worker of communication.py times at one size, and an exchange that overlaps a computation."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

import torch
from communication_exchanges import OURS, Gradients, parameters_of
from communication_operations import ExchangesAtSizes, Operation
from communication_peers import Peers
from communication_rows import bandwidths, check, relative_error
from quiet import Processors, describe
from torch import Tensor, nn

from hpcdat.distributed.communicator import Communicator
from hpcdat.distributed.environment import describe_environment
from hpcdat.exchange.gradient_exchange import GradientExchange, gradients_of
from hpcdat.hardware.network_cards import network_cards, sent_between
from hpcdat.performance.benchmark_file import BenchmarkFile, Row

CPU = torch.device("cpu")
OVERLAPPED = 1
"""Number of the exchange that overlaps a computation, float32 by a sharded server."""


@dataclass(frozen=True)
class Timed:
    """One run of an exchange.

    Attributes:
        seconds: of the slowest worker.
        processor: seconds of processor time, mean over the workers.
        sent: bytes that all cards sent; None if no card counts them.
        most_sent: bytes of the card that sent most; None likewise.
    """

    seconds: float
    processor: float
    sent: int | None
    most_sent: int | None


class Bench:
    """One worker's part of the measurement."""

    def __init__(self, workers: Communicator, count: int) -> None:
        self.workers, self.count = workers, count
        gradients = Gradients(workers, CPU)
        self._sources = (ExchangesAtSizes(gradients, OURS), Peers(gradients))

    def operations(self) -> list[Operation]:
        """Our exchanges, and all-reduces of the same gradient by others, in one call."""
        chosen = ("all-reduce", "exchange")
        return [make() for source in self._sources for make in source.at(4 * self.count, chosen)]

    def close(self) -> None:
        """End what operations have begun."""
        for source in self._sources:
            source.close()

    def time(self, run: Callable[[], object]) -> Timed:
        """Time one run on all workers."""
        self.workers.all_gather_object(None, "ready")
        cards, start, processor = network_cards(), time.perf_counter(), time.process_time()
        run()
        spent, processor = time.perf_counter() - start, time.process_time() - processor
        # The last packets may not have been sent yet.
        time.sleep(0.05)
        # One worker of each node counts its cards, which workers on one node do not use.
        counted = self.workers.local_rank == 0 and self.workers.nodes > 1
        sent = list(sent_between(cards, network_cards()).values()) if counted else []
        answers = self.workers.all_gather_object([spent, processor, sent], "times")
        wall, processors, by_node = zip(*answers, strict=True)
        by_card = [count for node in by_node for count in node if count is not None]
        return Timed(
            max(wall), fmean(processors), sum(by_card) if by_card else None, max(by_card, default=None)
        )

    def row_of(self, operation: Operation, rounds: list[Timed], checked: list[dict[str, Any]]) -> Row:
        """The row of an operation.

        Args:
            operation: what was timed.
            rounds: its times.
            checked: the comparison of every worker's result with what was expected.
        """
        seconds = [timed.seconds for timed in rounds]
        figures: dict[str, float | None] = {
            **bandwidths(operation, median(seconds)),
            "error": relative_error(checked),
            "wrong": sum(one["wrong"] for one in checked),
            "processor_seconds": median(timed.processor for timed in rounds),
            "codec_seconds": operation.codec() if operation.codec else None,
            "sent": rounds[-1].sent,
            "sent_by_busiest_card": rounds[-1].most_sent,
            "predicted_sent": operation.sent,
        }
        return Row(parameters=operation.parameters, seconds=seconds, figures=figures)


class Computing(torch.autograd.Function):
    """A layer whose backward pass takes a given time without using a core, as on a GPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, seconds: float) -> Tensor:  # noqa: D102
        ctx.save_for_backward(weight)
        ctx.seconds = seconds
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:  # noqa: D102
        (weight,) = ctx.saved_tensors
        time.sleep(ctx.seconds)
        return gradient, torch.ones_like(weight), None


def measure_overlap(bench: Bench, rounds: int) -> list[Row]:
    """Seconds of computation, of an exchange, and of both in a training step."""
    layers, settings = 24, OURS[OVERLAPPED]
    model = nn.ParameterList([nn.Parameter(torch.zeros(bench.count // layers, 1)) for _ in range(layers)])
    one_layer = settings.model_copy(update={"bucket_mb": 4 * bench.count / layers / 2**20})
    exchange = GradientExchange(bench.workers, gradients_of(model), one_layer, 0)

    def backward(seconds: float) -> None:
        model.zero_grad(set_to_none=True)
        x = torch.zeros(1, requires_grad=True)
        for weight in model:
            x = Computing.apply(x, weight, seconds / layers)
        x.sum().backward()

    def step(seconds: float) -> None:
        exchange.begin(0, 0)
        backward(seconds)
        exchange.finish(torch.zeros(1))

    def row(part: str, run: Callable[[], None]) -> Row:
        seconds = [bench.time(run).seconds for _ in range(rounds + 1)][1:]
        identified = parameters_of(settings, bench.count, CPU) | {"operation": "overlap", "part": part}
        return Row(parameters=identified, seconds=seconds)

    communication = row("communication", lambda: step(0.0))
    hidden = communication.median
    return [
        row("computation", lambda: backward(hidden)),
        communication,
        row("step", lambda: step(hidden)),
    ]


def work(workers: Communicator, count: int, rounds: int, rate: str | None) -> BenchmarkFile:
    """A worker's whole part; the measurement, the same on all workers but for the environment's hosts."""
    bench = Bench(workers, count)
    operations = bench.operations()
    timed: list[list[Timed]] = [[] for _ in operations]
    checked: list[list[dict[str, Any]]] = [[] for _ in operations]
    for number in range(rounds + 1):
        if number == 1:
            # Compilers, which run in the first round, are processes of their own.
            processors = Processors()
        for place, operation in enumerate(operations):
            operation.reset()
            results: list[Tensor] = []
            once = bench.time(lambda run=operation.run, results=results: results.append(run()))
            if number:
                timed[place].append(once)
            else:
                own = check(results[0], operation.expected, operation.bound)
                checked[place] = workers.all_gather_object(own, "whether sums are right")
    rows = [bench.row_of(*each) for each in zip(operations, timed, checked, strict=True)]
    rows += measure_overlap(bench, rounds)
    bench.close()
    used = workers.all_gather_object(processors.report(), "processors")
    settings = {
        "workers": workers.size,
        "nodes": workers.nodes,
        "workers_per_node": workers.local_size,
        "engine": workers.engine,
        "transport": workers.transport,
        "device": "cpu",
        "repetitions": rounds,
        "warm_up": 1,
        "threads": torch.get_num_threads(),
        "count": count,
        "rate": rate,
    }
    notes = [describe(used, rows)]
    environment = describe_environment(workers, CPU)
    return BenchmarkFile.of("communication", environment, settings, rows, notes=notes)
