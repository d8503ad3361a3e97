"""The operations that communication.py times at one size: collectives, and our exchanges."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import torch
from communication_exchanges import Exchanges, Gradients, parameters_of
from torch import Tensor

from hpcdat.config.sections import Exchange
from hpcdat.distributed.communicator import Communicator
from hpcdat.exchange.resolve import MIN_COUNT_TO_COMPILE, pays_to_compile
from hpcdat.exchange.traffic import Collective, Kind
from hpcdat.performance.benchmark_file import Value

OPERATIONS = ("all-reduce", "all-gather", "all-to-all", "broadcast", "point to point", "exchange")
"""What ``--operations`` chooses from."""
KINDS: dict[str, Kind] = {
    "all-reduce": "allreduce",
    "all-gather": "allgather",
    "all-to-all": "alltoall",
    "broadcast": "broadcast",
}
"""The collectives of a communicator."""
WORD = 4
"""Bytes of a number: all are float32."""
SECONDS_TO_ANSWER = 600
"""Longest wait for another worker."""


@dataclass(frozen=True)
class Operation:
    """One operation at one size, as one worker takes part in it.

    Attributes:
        parameters: of its row.
        run: does it once, and returns what this worker has got.
        expected: what it should get; empty if it gets nothing.
        carried: bytes that each worker has to send, over the bytes of the operation.
        replaced: the same for the float32 numbers in place of which it sends what it sends.
        sent: bytes that all workers send, predicted; None if the algorithm is not known.
        bound: how far a right number may be from the expected one.
        reset: called before each run, untimed: undoes what a run has changed in place.
        align: called before each run, untimed: returns when all workers have called it.
        timed_by: rank of the worker whose time counts; None: the slowest one's.
        messages: that follow one another in a run; the time of one is reported.
        codec: measures the seconds of computation in an exchange on a CPU; all workers call it together.
    """

    parameters: dict[str, Value]
    run: Callable[[], Tensor]
    expected: Tensor
    carried: float
    replaced: float
    align: Callable[[], object]
    sent: float | None = None
    bound: float = 0.0
    reset: Callable[[], object] = lambda: None
    timed_by: int | None = None
    messages: int = 1
    codec: Callable[[], float] | None = None

    def without_buffers(self) -> Operation:
        """What its row needs when it is no longer run."""
        nothing = torch.empty(0)
        return replace(
            self,
            run=lambda: nothing,
            expected=nothing,
            align=lambda: None,
            reset=lambda: None,
            codec=None,
        )


def share_sent(operation: str, workers: int) -> float:
    """Bytes that each worker has to send, over those of the operation: the factor of nccl-tests' busbw.

    The bytes of an all-gather are those that each worker receives, of an all-to-all those that it has.
    """
    if operation == "all-reduce":
        return 2 * (workers - 1) / workers
    return (workers - 1) / workers if operation in ("all-gather", "all-to-all") else 1.0


def count_of(operation: str, size: int, workers: int) -> int:
    """Numbers in the buffer of an operation: ``size`` bytes, rounded up to whole numbers for every worker."""
    step = WORD * (workers if operation in ("all-gather", "all-to-all") else 1)
    return -(-size // step) * step // WORD


def pattern(count: int, number: int, device: torch.device) -> Tensor:
    """Numbers (count,), float32, that differ from those of another ``number`` and from their neighbours."""
    return torch.arange(count, device=device, dtype=torch.float32) % 4093 + 4096.0 * number


def rows_of_all(count: int, workers: Communicator, device: torch.device) -> Tensor:
    """What an all-gather of ``count`` numbers gives to each worker: (M, count / M), row i of worker i."""
    return torch.stack([pattern(count // workers.size, rank, device) for rank in range(workers.size)])


def rows_for_each(count: int, workers: Communicator, device: torch.device) -> tuple[Tensor, Tensor]:
    """What this worker gives to each other in an all-to-all, and what it gets: (M, count / M) both."""
    size, rank = workers.size, workers.rank
    given = [pattern(count // size, rank * size + other, device) for other in range(size)]
    got = [pattern(count // size, other * size + rank, device) for other in range(size)]
    return torch.stack(given), torch.stack(got)


def plain(operation: str, by: str, count: int, device: torch.device) -> dict[str, Value]:
    """The parameters of a row that is not one of our exchanges."""
    return {
        "operation": operation,
        "by": by,
        "protocol": None,
        "bits": 32,
        "two_sided": False,
        "type": "float32",
        "bytes": WORD * count,
        "device": device.type,
    }


Maker = Callable[[], Operation]
"""Makes an operation with its buffers; all workers call it together."""


class Source(Protocol):
    """What makes operations; all workers create it together."""

    def at(self, size: int, chosen: Sequence[str]) -> list[Maker]:
        """Makers of those of its operations that are chosen, with ``size`` bytes."""
        ...

    def close(self) -> None:
        """End what the operations have begun, if anything; all workers call this together."""


class Collectives(Source):
    """The collectives of a communicator, as Horovod or torch.distributed runs them.

    Args:
        gradients: with the workers that take part, and the device of all buffers.
    """

    def __init__(self, gradients: Gradients) -> None:
        self.gradients, self.workers, self.device = gradients, gradients.workers, gradients.device

    def at(self, size: int, chosen: Sequence[str]) -> list[Maker]:  # noqa: D102
        makers = {
            "all-reduce": self._all_reduce,
            "all-gather": self._all_gather,
            "all-to-all": self._all_to_all,
            "broadcast": self._broadcast,
            "point to point": self._point_to_point,
        }
        names = [name for name in OPERATIONS if name in chosen and name in makers]
        return [partial(makers[name], count_of(name, size, self.workers.size)) for name in names]

    def _align(self) -> None:
        self.workers.barrier("ready")

    def _made(
        self, name: str, count: int, run: Callable[[], Tensor], expected: Tensor, wire: float
    ) -> Operation:
        share = share_sent(name, self.workers.size)
        parameters = plain(name, "hpcdat", count, self.device)
        sent = Collective(KINDS[name], wire).traffic(self.workers.size).total if name in KINDS else wire
        return Operation(parameters, run, expected, share, share, self._align, sent)

    def _all_reduce(self, count: int) -> Operation:
        gradient = self.gradients.of(count)
        total = torch.empty_like(gradient.own)

        def run() -> Tensor:
            self.workers.iall_reduce([total], "sum").wait()
            return total

        made = self._made("all-reduce", count, run, gradient.exact, WORD * count)
        return replace(made, reset=lambda: total.copy_(gradient.own))

    def _all_gather(self, count: int) -> Operation:
        rows = rows_of_all(count, self.workers, self.device)
        own = rows[self.workers.rank].clone()
        wire = WORD * own.numel()
        return self._made(
            "all-gather", count, lambda: self.workers.iall_gather(own, "rows").wait(), rows, wire
        )

    def _all_to_all(self, count: int) -> Operation:
        given, expected = rows_for_each(count, self.workers, self.device)
        return self._made(
            "all-to-all",
            count,
            lambda: self.workers.iall_to_all(given, "rows").wait(),
            expected,
            WORD * count,
        )

    def _broadcast(self, count: int) -> Operation:
        first = pattern(count, 0, self.device)
        own = first.clone()

        def run() -> Tensor:
            self.workers.ibroadcast(own, "from the first").wait()
            return own

        made = self._made("broadcast", count, run, first, WORD * count)
        return replace(made, reset=lambda: None if self.workers.is_rank0 else own.fill_(torch.nan))

    def _point_to_point(self, count: int) -> Operation:
        """There and back between the first worker and the last; the last sends back what it has received."""
        last, first = self.workers.size - 1, pattern(count, 0, self.device)
        other = torch.zeros_like(first)

        def run() -> Tensor:
            row = first if self.workers.is_rank0 else other
            there = self.workers.isend(row, 0, last, "there").wait()
            back: Tensor = self.workers.isend(there[0] if len(there) else row, last, 0, "back").wait()
            return back.flatten()

        expected = first if self.workers.is_rank0 else first[:0]
        made = self._made("point to point", count, run, expected, WORD * count)
        return replace(made, timed_by=0, messages=2)


class ExchangesAtSizes(Source):
    """Our exchanges of gradients of several sizes.

    Args:
        gradients: what is exchanged.
        exchanges: the exchanges.
    """

    def __init__(self, gradients: Gradients, exchanges: Sequence[Exchange]) -> None:
        self.gradients, self.workers, self.exchanges = gradients, gradients.workers, exchanges
        self._by_size: dict[bool, Exchanges] = {}

    def at(self, size: int, chosen: Sequence[str]) -> list[Maker]:  # noqa: D102
        if "exchange" not in chosen:
            return []
        count = count_of("exchange", size, self.workers.size)
        return [partial(self._exchange, number, count) for number in range(len(self.exchanges))]

    def _exchange(self, number: int, count: int) -> Operation:
        exchanges, gradient = self._exchanges(count), self.gradients.of(count)
        target, sent = torch.empty_like(gradient.own), exchanges.bytes_sent(number, count)
        return Operation(
            parameters_of(self.exchanges[number], count, self.gradients.device),
            exchanges.run_of(number, gradient.own, target),
            gradient.exact,
            sent / self.workers.size / (WORD * count),
            share_sent("all-reduce", self.workers.size),
            lambda: self.workers.barrier("ready"),
            sent,
            gradient.largest_rounding(exchanges.plan(number), self.workers.size),
            # A worker that gets nothing must not find the last sum.
            reset=lambda: target.fill_(torch.nan),
            codec=lambda: exchanges.codec_seconds(number, gradient.own),
        )

    def _exchanges(self, count: int) -> Exchanges:
        """The exchanges of ``count`` numbers, compiled as training would do with a model of this size."""
        # All workers agree on that, but not every node may have a compiler.
        large = count >= MIN_COUNT_TO_COMPILE
        if large not in self._by_size:
            if large and self.workers.is_rank0:
                print("compiling the codecs; torch keeps them for the next run", file=sys.stderr, flush=True)
            self._by_size[large] = Exchanges(
                self.workers, self.exchanges, self.gradients.device, compiled=pays_to_compile(count)
            )
        return self._by_size[large]

    def close(self) -> None:  # noqa: D102
        for exchanges in self._by_size.values():
            exchanges.close()
