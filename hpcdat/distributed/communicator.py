"""The interface through which the workers of a run communicate.

The methods are named after MPI's: those that begin with ``i`` return a :class:`Pending` result immediately.
All workers call the same collectives in the same order, with the same names; collectives whose order differs
between workers belong to different channels (:meth:`Communicator.channel`).
"""

from __future__ import annotations

import json
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, NoReturn, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from hpcdat.distributed.cores import usable_cores
from hpcdat.distributed.waiting import announcing
from hpcdat.errors import HpcdatError, InputError, Stopped, WorkerError

T = TypeVar("T")
JSON = None | bool | int | float | str | list[Any] | dict[str, Any]
"""What can be sent from one worker to another as text."""
Sendable = TypeVar("Sendable", bound=JSON)


class Pending(Protocol):
    """A collective in progress."""

    def wait(self) -> Any:
        """Wait for the result and return it."""
        ...

    def ready(self) -> bool:
        """Whether the result is there, so that :meth:`wait` returns at once."""
        ...

    def wait_or(self, other: Callable[[], bool]) -> None:
        """Wait until the result is there or ``other()``, which is called often, is true."""
        ...


class Communicator(ABC):
    """One worker's connection to the others.

    Collectives composed of others are implemented here; subclasses implement the abstract ones.

    Attributes:
        rank: global rank, from 0.
        size: number of workers (M).
        local_rank: rank on this node.
        local_size: number of workers on this node (q).
        nodes: number of nodes (p).
        node_of: index of the node of every worker, from 0 in the order of ranks.
        host: this node's name.
        engine: what sums: ``horovod``, ``torch`` or ``none``.
        transport: transport of CPU tensors: ``none``, ``MPI``, ``Gloo`` or ``loopback``.
        nccl: whether NCCL carries tensors between GPUs.
        launcher: what started this process.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    nodes: int
    node_of: list[int]
    engine: Literal["horovod", "torch", "none"] = "none"
    transport: str
    nccl: bool = False

    def __init__(self, launcher: str) -> None:
        self.host = socket.gethostname()
        self.launcher = launcher

    @property
    def is_rank0(self) -> bool:
        """Whether this is rank 0, which writes files and prints."""
        return self.rank == 0

    def share_of_cores(self) -> int:
        """Number of cores for the threads of this worker, at least one."""
        return max(1, int(usable_cores() / self.local_size))

    @abstractmethod
    def iall_reduce(self, tensors: Sequence[Tensor], name: str) -> Pending:
        """Begin to replace each tensor by its sum over the workers, in place.

        Args:
            tensors: same shapes, dtypes and order on all workers; float16 to float64, int32 or int64.
            name: name of the collective, the same on all workers; likewise for all collectives below.
        """

    @abstractmethod
    def iall_reduce_max(self, tensor: Tensor, name: str) -> Pending:
        """Begin to compute the elementwise maximum over the workers, a new tensor."""

    @abstractmethod
    def iall_to_all(self, rows: Tensor, name: str) -> Pending:
        """Begin to send row i to worker i; the result is (M, ...), row j from worker j.

        Args:
            rows: (M, ...), any dtype.
            name: as above.
        """

    @abstractmethod
    def iall_to_all_v(self, rows: Tensor, counts: Sequence[int], name: str) -> Pending:
        """Begin to send each worker a number of rows; the result is the rows received, in the order of ranks.

        Args:
            rows: (N, ...), with the same trailing shape and dtype on all workers; those for worker 0 first.
            counts: number of rows for every worker, N in total.
            name: as above.
        """

    @abstractmethod
    def iall_gather(self, row: Tensor, name: str) -> Pending:
        """Begin to collect every worker's tensor, of the same shape on all: (M, ...) on all workers."""

    @abstractmethod
    def ibroadcast(self, tensor: Tensor, name: str) -> Pending:
        """Begin to replace a tensor by worker 0's, in place."""

    @abstractmethod
    def all_gather_object(self, value: JSON, name: str) -> list[Any]:
        """Every worker's value in the order of ranks, on all workers: M times as much as one of them sends.

        For a few values of few workers. :meth:`gather_object` and :meth:`broadcast_object` cost the workers
        that are not worker 0 the same with any M.
        """

    @abstractmethod
    def split(self, groups: Sequence[int]) -> Communicator:
        """Return a communicator for the workers of this one's group; all workers call this.

        Args:
            groups: group number of every worker, in the order of ranks.
        """

    @abstractmethod
    def close(self) -> None:
        """Disconnect from the other workers; all workers call this, and no collective can follow."""

    def channel(self, name: str, *, neighbors: bool = False) -> Communicator:
        """Return these workers for a sequence of collectives that others may overlap in any order.

        All workers call this together. The collectives of one channel are started in the same order on all
        workers. An engine that matches collectives by name needs no channels: they are this communicator.

        Args:
            name: of the channel, the same on all workers.
            neighbors: whether it is for :meth:`ineighbor_all_to_all_v`, which then uses messages between two
                workers where the transport has them.
        """
        return self

    def ineighbor_all_to_all_v(
        self, rows: Tensor, sends: Mapping[int, int], receives: Mapping[int, int], name: str
    ) -> Pending:
        """Begin to send some workers rows; the result is the rows received, in the order of ranks.

        Every worker calls this, also if it neither sends nor receives. With messages between two workers only
        these two wait for each other; otherwise, and of GPU tensors, it is an all-to-all.

        Args:
            rows: (N, ...), with the same trailing shape and dtype on all workers; those for the lowest rank
                first.
            sends: number of rows, possibly 0, by the rank of the receiver; N in total.
            receives: the most rows that may come, by the rank of the sender: of all that send to this one.
            name: as above.
        """
        return self.iall_to_all_v(rows, [sends.get(rank, 0) for rank in range(self.size)], name)

    def igather(self, row: Tensor, name: str) -> Pending:
        """Begin to collect every worker's tensor on worker 0: (M, ...) there, (0, ...) elsewhere."""
        return self.iall_to_all_v(row[None], [1] + [0] * (self.size - 1), name)

    def isend(self, row: Tensor, source: int, target: int, name: str) -> Pending:
        """Begin to send a tensor from one worker to another: (1, ...) on the latter, (0, ...) elsewhere.

        Args:
            row: of the same shape and dtype on all workers, all of which call this.
            source, target: ranks of sender and receiver.
            name: as above.
        """
        sends = self.rank == source
        counts = [int(sends and rank == target) for rank in range(self.size)]
        return self.iall_to_all_v(row[None][: int(sends)], counts, name)

    def all_reduce(self, tensors: Sequence[Tensor], name: str) -> None:
        """Replace each tensor by its sum over the workers, in place; see :meth:`iall_reduce`."""
        self.iall_reduce(tensors, name).wait()

    def all_reduce_max(self, tensor: Tensor, name: str) -> Tensor:
        """The elementwise maximum over the workers, a new tensor."""
        largest: Tensor = self.iall_reduce_max(tensor, name).wait()
        return largest

    def broadcast(self, tensors: Sequence[Tensor], name: str) -> None:
        """Replace each tensor by worker 0's, in place."""
        for pending in [self.ibroadcast(tensor, f"{name}.{i}") for i, tensor in enumerate(tensors)]:
            pending.wait()

    def gather_object(self, value: JSON, name: str) -> list[Any]:
        """Every worker's value in the order of ranks, on worker 0; an empty list on the others."""
        return self.exchange_objects(value, [0], name)

    def exchange_objects(self, value: JSON, targets: Sequence[int], name: str) -> list[Any]:
        """The values that other workers send to this one, in the order of ranks.

        Args:
            value: sent to each target.
            targets: ranks of the workers that receive it.
            name: as above.
        """
        # A line of JSON has no line break inside.
        text = _bytes_of(json.dumps(value) + "\n")
        counts = [0] * self.size
        for target in targets:
            counts[target] = len(text)
        received: Tensor = self.iall_to_all_v(text.repeat(len(targets)), counts, name).wait()
        return [json.loads(line) for line in received.numpy().tobytes().splitlines()]

    def broadcast_object(self, value: JSON, name: str) -> Any:
        """Worker 0's value, on all workers."""
        text = _bytes_of(json.dumps(value) if self.is_rank0 else "")
        length = torch.tensor([len(text)])
        self.broadcast([length], f"{name}: length")
        if not self.is_rank0:
            text = torch.empty(int(length), dtype=torch.uint8)
        self.broadcast([text], name)
        return json.loads(text.numpy().tobytes())

    def barrier(self, name: str) -> None:
        """Wait until all workers have called this."""
        self.all_reduce([torch.zeros(1)], name)

    def on_all_ranks(self, what: str, work: Callable[[], T]) -> T:
        """Call a function on every worker; if it fails on one, it fails on all.

        Args:
            what: the work, as in "cannot ...".
            work: may differ between workers, but calls no collective.

        Returns:
            What ``work`` returned on this worker.

        Raises:
            InputError: it failed on all failing workers because an input is wrong.
            Stopped: a stop was requested while one of them waited in it.
            WorkerError: it failed for another reason. The message names reason, worker and host.
        """
        results: list[T] = []
        failure: JSON = None
        try:
            with announcing(what, shown=self.is_rank0):
                results.append(work())
        except (OSError, RuntimeError, ValueError, HpcdatError) as error:
            failure = list(_Failure.of(error, what, self))
        name = f"whether all could {what}"
        failed = self.all_reduce_max(torch.tensor([int(failure is not None)]), name)
        if failed.item():
            every = self.gather_object(failure, f"{name}: failures")
            # Errors found by several workers are reported once, with the lowest rank.
            first = {tuple(reason): where for *reason, where in reversed([one for one in every if one])}
            distinct = [[*reason, where] for reason, where in reversed(first.items())]
            self._raise_for(self.broadcast_object(distinct, f"{name}: distinct failures"))
        (result,) = results
        return result

    def on_rank0(self, what: str, work: Callable[[], Sendable]) -> Sendable:
        """Call a function on worker 0 only; all workers get its result, or its failure.

        Args:
            what: the work, as in "cannot ...".
            work: calls no collective.

        Raises:
            InputError, WorkerError: as :meth:`on_all_ranks`.
        """
        result: JSON = None
        failure: JSON = None
        try:
            with announcing(what, shown=self.is_rank0):
                result = work() if self.is_rank0 else None
        except (OSError, RuntimeError, ValueError, HpcdatError) as error:
            failure = list(_Failure.of(error, what, self))
        answer = self.broadcast_object([result, failure], f"whether worker 0 could {what}")
        if answer[1]:
            self._raise_for([answer[1]])
        sent: Sendable = answer[0]
        return sent

    def _raise_for(self, failures: list[list[Any]]) -> NoReturn:
        distinct = [_Failure(*failure) for failure in failures]
        message = "\n".join(
            one.message if self.size == 1 else f"{one.message} ({one.where})" for one in distinct
        )
        kind: type[HpcdatError] = WorkerError
        if any(one.stopped for one in distinct):
            kind = Stopped
        elif all(one.wrong_input for one in distinct):
            kind = InputError
        raise kind(message, everywhere=True)


def _bytes_of(text: str) -> Tensor:
    return torch.from_numpy(np.frombuffer(text.encode(), np.uint8).copy())


class _Failure(NamedTuple):
    """Why a worker failed, as a serialisable value."""

    message: str
    wrong_input: bool
    stopped: bool
    where: str

    @classmethod
    def of(cls, error: Exception, what: str, comm: Communicator) -> _Failure:
        message = str(error) if isinstance(error, HpcdatError) else f"cannot {what}: {error}"
        where = f"worker {comm.rank} on {comm.host}"
        return cls(message, isinstance(error, InputError), isinstance(error, Stopped), where)
