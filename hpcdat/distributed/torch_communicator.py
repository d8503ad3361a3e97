"""Communication through torch.distributed: Gloo for CPU tensors, NCCL for GPU tensors."""

from __future__ import annotations

import copy
import json
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from hpcdat.distributed.addresses import check_own_name
from hpcdat.distributed.communicator import JSON, Communicator, Pending
from hpcdat.distributed.cores import cgroup_quota, share_of_cores
from hpcdat.distributed.device import same_gpu
from hpcdat.distributed.launcher import Launched
from hpcdat.distributed.stop_signals import StopRequest
from hpcdat.distributed.torch_store import NEVER, connect_store
from hpcdat.distributed.waiting import SECONDS_TO_CONNECT, Wait, poll, wait_in_thread
from hpcdat.distributed.watchdog import Watchdog
from hpcdat.seeds import derive


class TorchCommunicator(Communicator):
    """Workers connected by torch.distributed.

    Unlike Horovod, torch.distributed does not match collectives by name, but by their order. So collectives
    that may be in progress at the same time as others belong to a :meth:`channel` of their own.

    Args:
        place: rank and size according to the launcher.
        stall_timeout: longest wait for the others, seconds.
        stop: request to stop, which ends the wait for a connection.

    Raises:
        WorkerError: the others did not connect in time, or this node's name does not resolve.
        Stopped: a stop was requested before the workers had connected.
    """

    def __init__(self, place: Launched, stall_timeout: float, *, stop: StopRequest | None = None) -> None:
        super().__init__(place.launcher)
        self.engine, self.transport, self.nccl = "torch", "Gloo", True
        self.rank, self.size = place.rank, place.size
        if place.launcher != "hpcdat -np" and "GLOO_SOCKET_IFNAME" not in os.environ:
            check_own_name(stop)
        self._store = connect_store(place, max(stall_timeout, SECONDS_TO_CONNECT), stop)
        self._watchdog = Watchdog(stall_timeout, f"worker {place.rank} on {self.host}")
        self._channel, self._ranks = "main", list(range(self.size))
        self._groups: dict[tuple[str, tuple[int, ...]], _Group] = {}
        others = f"the other {place.size - 1} of {place.size} workers to connect ({place.launcher})"
        with self._bounded("connecting", at_least=SECONDS_TO_CONNECT):
            self._group = wait_in_thread(self._connect, Wait(others, stop, shown=place.rank == 0))

        hosts = self.iall_gather(torch.tensor(derive(0, self.host)), "nodes").wait().tolist()
        numbers = {host: number for number, host in enumerate(dict.fromkeys(hosts))}
        self.node_of, self.nodes = [numbers[host] for host in hosts], len(numbers)
        here = [rank for rank, node in enumerate(self.node_of) if node == self.node_of[self.rank]]
        self.local_rank, self.local_size = here.index(self.rank), len(here)
        cores = sorted(os.sched_getaffinity(0))
        self._share_of_cores = share_of_cores(
            cores, self.exchange_objects(cores, here, "cores"), cgroup_quota()
        )

    def share_of_cores(self) -> int:  # noqa: D102
        return self._share_of_cores

    def iall_reduce(self, tensors: Sequence[Tensor], name: str) -> Pending:  # noqa: D102
        own, group = [tensor.detach() for tensor in tensors], self._group
        flat = {dtype: _flatten([t for t in own if t.dtype == dtype]) for dtype in _dtypes(own)}

        def result() -> list[Tensor]:
            for dtype, total in flat.items():
                _unflatten(total, [t for t in own if t.dtype == dtype])
            return list(tensors)

        return self._start(
            lambda: [group.of(part).allreduce(part, dist.ReduceOp.SUM) for part in flat.values()],
            result,
            name,
        )

    def iall_reduce_max(self, tensor: Tensor, name: str) -> Pending:  # noqa: D102
        largest, group = tensor.clone(memory_format=torch.contiguous_format), self._group
        return self._start(
            lambda: [group.of(largest).allreduce(largest, dist.ReduceOp.MAX)], lambda: largest, name
        )

    def iall_to_all(self, rows: Tensor, name: str) -> Pending:  # noqa: D102
        each = [1] * self.size
        return self._exchange(rows, each, each, name)

    def iall_gather(self, row: Tensor, name: str) -> Pending:  # noqa: D102
        row, group = row.contiguous(), self._group
        rows = row.new_empty((self.size, *row.shape))
        # As bytes, so that every dtype can be sent.
        return self._start(
            lambda: [group.of(row)._allgather_base(_bytes(rows), _bytes(row))], lambda: rows, name
        )

    def iall_to_all_v(self, rows: Tensor, counts: Sequence[int], name: str) -> Pending:  # noqa: D102
        group, sent = self._group, torch.tensor(list(counts))
        received: list[Tensor] = []

        def issue() -> list[dist.Work]:
            # A worker learns what it will receive before it receives it.
            incoming = torch.empty_like(sent)
            group.of(sent).alltoall_base(incoming, sent, [], []).wait()
            works, result = _exchange(group, rows, list(counts), incoming.tolist())
            received.append(result)
            return works

        return self._start(issue, lambda: received[0], name, waits=True)

    def ibroadcast(self, tensor: Tensor, name: str) -> Pending:  # noqa: D102
        flat, group = _flatten([tensor.detach()]), self._group

        def result() -> Tensor:
            _unflatten(flat, [tensor.detach()])
            return tensor

        return self._start(lambda: [group.of(flat).broadcast(_bytes(flat), 0)], result, name)

    def igather(self, row: Tensor, name: str) -> Pending:  # noqa: D102
        sends = [1] + [0] * (self.size - 1)
        receives = [int(self.is_rank0)] * self.size
        return self._exchange(row[None], sends, receives, name)

    def isend(self, row: Tensor, source: int, target: int, name: str) -> Pending:  # noqa: D102
        sends = [int(self.rank == source and rank == target) for rank in range(self.size)]
        receives = [int(self.rank == target and rank == source) for rank in range(self.size)]
        return self._exchange(row[None][: sum(sends)], sends, receives, name)

    def all_gather_object(self, value: JSON, name: str) -> list[Any]:  # noqa: D102
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        lengths = self.iall_gather(torch.tensor(len(text)), f"{name}.length").wait().tolist()
        padded = torch.nn.functional.pad(text, (0, max(lengths) - len(text)))
        texts = self.iall_gather(padded, name).wait()
        return [
            json.loads(row[:length].numpy().tobytes()) for row, length in zip(texts, lengths, strict=True)
        ]

    def channel(self, name: str, *, neighbors: bool = False) -> Communicator:  # noqa: D102
        return self._of(f"{self._channel}/{name}", self._ranks)

    def split(self, groups: Sequence[int]) -> Communicator:  # noqa: D102
        return self._of(
            self._channel, [r for r, g in zip(self._ranks, groups, strict=True) if g == groups[self.rank]]
        )

    def close(self) -> None:  # noqa: D102
        self.barrier("whether all are done")
        self._groups.clear()

    def _of(self, channel: str, ranks: list[int]) -> TorchCommunicator:
        """The communicator of a channel for some workers, given by their ranks among all."""
        own = copy.copy(self)
        own._channel, own._ranks = channel, ranks
        own.rank, own.size = ranks.index(self._ranks[self.rank]), len(ranks)
        with self._bounded(f"connecting {channel}", at_least=SECONDS_TO_CONNECT):
            own._group = own._connect()
        return own

    def _connect(self) -> _Group:
        """Connect the workers of this communicator, once."""
        key = (self._channel, tuple(self._ranks))
        if key not in self._groups:
            # Workers find each other by what they share, whatever else they have connected before.
            name = f"hpcdat/{self._channel}/of {self._ranks}"
            self._groups[key] = _Group(dist.PrefixStore(name, self._store), self.rank, self.size)
        return self._groups[key]

    def _exchange(self, rows: Tensor, sends: list[int], receives: list[int], name: str) -> Pending:
        """Begin to send rows to the workers, each of which knows how many it receives."""
        group = self._group
        received: list[Tensor] = []

        def issue() -> list[dist.Work]:
            works, result = _exchange(group, rows, sends, receives)
            received.append(result)
            return works

        return self._start(issue, lambda: received[0], name)

    def _start(
        self, issue: Callable[[], list[dist.Work]], result: Callable[[], Any], name: str, waits: bool = False
    ) -> Pending:
        # Gloo reports lost workers when it is waited for, NCCL also here.
        with self._watchdog.bounded(name, dist.DistError, "torch.distributed"):
            return _Handle(self, self._group.start(issue, waits=waits), result, name)

    def _bounded(self, what: str, *, at_least: float = 0.0) -> AbstractContextManager[None]:
        return self._watchdog.bounded(what, RuntimeError, "torch.distributed", at_least=at_least)


class _Group:
    """The connections between some workers, whose collectives all of them start in the same order.

    Args:
        store: through which they find each other.
        rank, size: of this worker among them, and their number.
    """

    def __init__(self, store: dist.Store, rank: int, size: int) -> None:
        self._place = (store, rank, size)
        self._gloo = dist.ProcessGroupGloo(dist.PrefixStore("gloo", store), rank, size, NEVER)
        self._nccl: dist.ProcessGroupNCCL | None = None
        self._in_turn: ThreadPoolExecutor | None = None
        self._last: Future[list[dist.Work]] = _completed([])

    def of(self, tensor: Tensor) -> Any:
        """What carries such a tensor: NCCL between GPUs, otherwise Gloo."""
        if not tensor.is_cuda:
            return self._gloo
        if self._nccl is None:
            store, rank, size = self._place
            options = dist.ProcessGroupNCCL.Options()
            options._timeout = NEVER
            self._nccl = dist.ProcessGroupNCCL(dist.PrefixStore("nccl", store), rank, size, options)
        return self._nccl

    def start(self, issue: Callable[[], list[dist.Work]], *, waits: bool) -> Future[list[dist.Work]]:
        """Start a collective after those before it.

        Args:
            issue: starts its parts.
            waits: whether it waits for one part before it starts another. It then does so in a thread, and
                the collectives that follow wait their turn.
        """
        if self._last.done() and not waits:
            return _completed(issue())
        self._in_turn = self._in_turn or ThreadPoolExecutor(1, "collectives", same_gpu())
        self._last = self._in_turn.submit(issue)
        return self._last


class _Handle:
    """A collective in progress."""

    def __init__(
        self,
        workers: TorchCommunicator,
        started: Future[list[dist.Work]],
        result: Callable[[], Any],
        name: str,
    ) -> None:
        self._workers, self._started, self._result, self._name = workers, started, result, name

    def ready(self) -> bool:
        return self._started.done() and (
            self._started.exception() is not None
            or all(work.is_completed() for work in self._started.result())
        )

    def wait(self) -> Any:
        with self._workers._bounded(self._name):
            poll(self.ready)
            for work in self._started.result():
                work.wait()
        return self._result()

    def wait_or(self, other: Callable[[], bool]) -> None:
        with self._workers._bounded(self._name):
            poll(lambda: self.ready() or other())


def _exchange(
    group: _Group, rows: Tensor, sends: list[int], receives: list[int]
) -> tuple[list[dist.Work], Tensor]:
    """Start to send so many rows to each worker and to receive so many from each."""
    rows = rows.contiguous()
    received = rows.new_empty((sum(receives), *rows.shape[1:]))
    size = rows.element_size() * math.prod(rows.shape[1:])
    work = group.of(rows).alltoall_base(
        _bytes(received),
        _bytes(rows),
        [size * count for count in receives],
        [size * count for count in sends],
    )
    return [work], received


def _completed(works: list[dist.Work]) -> Future[list[dist.Work]]:
    future: Future[list[dist.Work]] = Future()
    future.set_result(works)
    return future


def _bytes(tensor: Tensor) -> Tensor:
    """The bytes of a contiguous tensor, which share its memory."""
    return tensor.view(-1).view(torch.uint8)


def _dtypes(tensors: Sequence[Tensor]) -> list[torch.dtype]:
    return list(dict.fromkeys(tensor.dtype for tensor in tensors))


def _flatten(tensors: Sequence[Tensor]) -> Tensor:
    """The elements of tensors of one dtype, in a vector; a single contiguous tensor is not copied."""
    if len(tensors) == 1:
        return tensors[0].contiguous().view(-1)
    return torch.cat([tensor.flatten() for tensor in tensors])


def _unflatten(vector: Tensor, tensors: Sequence[Tensor]) -> None:
    """Write a vector from :func:`_flatten` back."""
    if len(tensors) == 1 and tensors[0].data_ptr() == vector.data_ptr():
        return
    parts = vector.split([tensor.numel() for tensor in tensors])
    torch._foreach_copy_(list(tensors), [p.view_as(t) for p, t in zip(parts, tensors, strict=True)])
