"""M workers in one process, without launcher, network or other processes.

For testing code written against :class:`Communicator`, and for counting the bytes that M workers would send.
Ranks may be threads, which wait for each other, or generators that one thread advances in turn: a collective
is complete as soon as every rank has started it.
"""

from __future__ import annotations

import copy
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from hpcdat.distributed.communicator import JSON, Communicator, Pending
from hpcdat.errors import WorkerError

T = TypeVar("T")
SECONDS_BETWEEN_POLLS = 0.001
"""Seconds after which a wait for one of several collectives looks at all of them again."""


@dataclass
class _Collective:
    """One collective: the ranks' inputs and outputs.

    Attributes:
        kind: ``sum``, ``max``, ...: the same on all ranks.
        size: number of ranks.
        inputs: by rank.
        outputs: by rank, once all inputs are there.
    """

    kind: str
    size: int
    inputs: dict[int, Any] = field(default_factory=dict)
    outputs: list[Any] | None = None


class _Switchboard:
    """Matches the collectives of a group of ranks by name."""

    def __init__(self, size: int, timeout: float) -> None:
        self.size, self.timeout = size, timeout
        self.changed = threading.Condition()
        self.groups: dict[tuple[int, ...], _Switchboard] = {}
        self.failed: str | None = None
        self._pending: dict[tuple[str, int], _Collective] = {}

    def start(
        self,
        rank: int,
        kind: str,
        name: tuple[str, int],
        value: Any,
        combine: Callable[[list[Any]], list[Any]],
    ) -> _Collective:
        with self.changed:
            collective = self._pending.setdefault(name, _Collective(kind, self.size))
            if collective.kind != kind:
                raise WorkerError(f"{name[0]}: rank {rank} calls {kind}, another rank {collective.kind}")
            collective.inputs[rank] = value
            if len(collective.inputs) == self.size:
                collective.outputs = combine([collective.inputs[other] for other in range(self.size)])
                del self._pending[name]
                self.changed.notify_all()
        return collective

    def wait(self, collective: _Collective, name: str) -> list[Any]:
        with self.changed:
            woken = self.changed.wait_for(lambda: collective.outputs is not None or self.failed, self.timeout)
        if collective.outputs is None:
            missing = sorted(set(range(self.size)) - set(collective.inputs))
            why = self.failed if woken else f"timed out after {self.timeout:g} s"
            raise WorkerError(f"{name}: ranks {missing} have not called it: {why}")
        return collective.outputs

    def wait_or(self, collective: _Collective, other: Callable[[], bool]) -> None:
        deadline = time.monotonic() + self.timeout
        with self.changed:
            # What the other one waits for may complete without a notification here.
            while not (collective.outputs is not None or self.failed or other()):
                if time.monotonic() > deadline:
                    break
                self.changed.wait(SECONDS_BETWEEN_POLLS)

    def fail(self, why: str) -> None:
        """Wake all waiting ranks because one has failed."""
        with self.changed:
            self.failed = why
            self.changed.notify_all()
        for group in self.groups.values():
            group.fail(why)


class _Started:
    """A collective that one rank has started."""

    def __init__(
        self, workers: Loopback, collective: _Collective, name: str, take: Callable[[Any], Any]
    ) -> None:
        self._workers, self._collective, self._name, self._take = workers, collective, name, take

    def ready(self) -> bool:
        return self._collective.outputs is not None

    def wait_or(self, other: Callable[[], bool]) -> None:
        self._workers._switchboard.wait_or(self._collective, other)
        if not self.ready() and not other():
            # Failed or timed out, which the wait reports.
            self.wait()

    def wait(self) -> Any:
        outputs = self._workers._switchboard.wait(self._collective, self._name)
        return self._take(outputs[self._workers.rank])


class Loopback(Communicator):
    """One rank of M in this process; :func:`loopback` creates all of them.

    Sums are computed in the order of ranks.
    """

    def __init__(self, rank: int, switchboard: _Switchboard, node_of: Sequence[int]) -> None:
        super().__init__("none")
        self.rank, self.size = rank, switchboard.size
        self.node_of = list(node_of)
        self.nodes = len(set(node_of))
        self.local_rank = self.node_of[:rank].count(self.node_of[rank])
        self.local_size = self.node_of.count(self.node_of[rank])
        self.transport = "loopback"
        self._switchboard = switchboard
        self._uses: Counter[str] = Counter()

    def _start(
        self,
        kind: str,
        name: str,
        value: Any,
        combine: Callable[[list[Any]], list[Any]],
        take: Callable[[Any], Any] = lambda output: output,
    ) -> Pending:
        # Uses of a name are counted: a rank may reuse it while others are still in the earlier collective.
        self._uses[name] += 1
        collective = self._switchboard.start(self.rank, kind, (name, self._uses[name]), value, combine)
        return _Started(self, collective, name, take)

    def iall_reduce(self, tensors: Sequence[Tensor], name: str) -> Pending:  # noqa: D102
        def add(inputs: list[list[Tensor]]) -> list[list[Tensor]]:
            totals = [tensor.clone() for tensor in inputs[0]]
            for others in inputs[1:]:
                for total, other in zip(totals, others, strict=True):
                    total.add_(other)
            return [totals] * self.size

        return self._start("sum", name, _copies(tensors), add, lambda totals: _fill(tensors, totals))

    def iall_reduce_max(self, tensor: Tensor, name: str) -> Pending:  # noqa: D102
        def largest(inputs: list[Tensor]) -> list[Tensor]:
            return [torch.stack(inputs).amax(0) for _ in inputs]

        return self._start("max", name, tensor.clone(), largest)

    def iall_to_all(self, rows: Tensor, name: str) -> Pending:  # noqa: D102
        return self.iall_to_all_v(rows, [1] * self.size, name)

    def iall_gather(self, row: Tensor, name: str) -> Pending:  # noqa: D102
        return self._start("allgather", name, row.clone(), lambda rows: [torch.stack(rows) for _ in rows])

    def iall_to_all_v(self, rows: Tensor, counts: Sequence[int], name: str) -> Pending:  # noqa: D102
        def deal(inputs: list[tuple[Tensor, list[int]]]) -> list[Tensor]:
            # Most ranks may send most others nothing: no tensor is made for each pair.
            received: list[list[Tensor]] = [[] for _ in range(self.size)]
            for given, shares in inputs:
                start = 0
                for rank, share in enumerate(shares):
                    if share:
                        received[rank].append(given[start : start + share])
                        start += share
            return [torch.cat(parts) if parts else inputs[0][0][:0] for parts in received]

        return self._start("deal", name, (rows.clone(), list(counts)), deal)

    def ibroadcast(self, tensor: Tensor, name: str) -> Pending:  # noqa: D102
        return self._start(
            "broadcast",
            name,
            [tensor.clone()],
            lambda inputs: [inputs[0]] * self.size,
            lambda first: _fill([tensor], first)[0],
        )

    def split(self, groups: Sequence[int]) -> Communicator:  # noqa: D102
        ranks = [rank for rank, group in enumerate(groups) if group == groups[self.rank]]
        board = self._switchboard
        with board.changed:
            group_board = board.groups.setdefault(tuple(ranks), _Switchboard(len(ranks), board.timeout))
        own = copy.copy(self)
        own.rank, own.size = ranks.index(self.rank), len(ranks)
        own._switchboard, own._uses = group_board, Counter()
        return own

    def all_gather_object(self, value: JSON, name: str) -> list[Any]:  # noqa: D102
        text = json.dumps(value)
        texts = self._start("gather", name, text, lambda texts: [texts] * self.size).wait()
        return [json.loads(text) for text in texts]

    def close(self) -> None:  # noqa: D102
        self.barrier("whether all are done")


def _copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.clone() for tensor in tensors]


def _fill(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> list[Tensor]:
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)
    return list(tensors)


def loopback(size: int, *, node_of: Sequence[int] | None = None, timeout: float = 60.0) -> list[Loopback]:
    """Create all ranks of a run in this process.

    Args:
        size: number of ranks (M).
        node_of: the simulated node of each rank; by default one node for all.
        timeout: longest wait for the other ranks, in seconds.
    """
    switchboard = _Switchboard(size, timeout)
    return [Loopback(rank, switchboard, node_of or [0] * size) for rank in range(size)]


def run_threads(ranks: Sequence[Loopback], program: Callable[[Loopback], T]) -> list[T]:
    """Run a program on every rank, each in its own thread.

    Returns:
        What each rank returned, in order.

    Raises:
        Exception: the first rank's failure that is not the consequence of another's.
    """
    results: list[Any] = [None] * len(ranks)
    failures: list[BaseException] = []

    def run(rank: Loopback) -> None:
        try:
            results[rank.rank] = program(rank)
        except BaseException as error:
            failures.append(error)
            rank._switchboard.fail(f"rank {rank.rank} failed with {type(error).__name__}: {error}")

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return results


def run_in_lockstep(exchanges: Sequence[Any]) -> list[Any]:
    """Advance one generator for each rank, collective by collective, and return what they return.

    A generator yields the collectives it has started and is sent their results, like the protocols of
    :mod:`hpcdat.exchange.protocols`; ranks may differ in their number of collectives.
    """
    pending: dict[int, Pending] = {}
    returned: dict[int, Any] = {}

    def advance(rank: int, result: Any) -> None:
        try:
            pending[rank] = exchanges[rank].send(result)
        except StopIteration as end:
            returned[rank] = end.value
            pending.pop(rank, None)

    for rank in range(len(exchanges)):
        advance(rank, None)
    while pending:
        ready = [rank for rank, collective in pending.items() if collective.ready()]
        if not ready:
            raise WorkerError(f"ranks {sorted(pending)} wait for each other: deadlock")
        for rank in ready:
            advance(rank, pending[rank].wait())
    return [returned[rank] for rank in range(len(exchanges))]
