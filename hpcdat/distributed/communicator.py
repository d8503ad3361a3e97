"""The interface through which the workers of a run communicate.

The methods are named after MPI's: those that begin with ``i`` return a :class:`Pending` result immediately.
All workers call the same collectives in the same order, with the same names; collectives whose order differs
between workers belong to different channels (:meth:`Communicator.channel`).
"""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

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
        """Every worker's value in the order of ranks, on all workers."""

    @abstractmethod
    def split(self, groups: Sequence[int]) -> Communicator:
        """Return a communicator for the workers of this one's group; all workers call this.

        Args:
            groups: group number of every worker, in the order of ranks.
        """

    @abstractmethod
    def close(self) -> None:
        """Disconnect from the other workers; all workers call this, and no collective can follow."""

    def channel(self, name: str) -> Communicator:
        """Return these workers for a sequence of collectives that others may overlap in any order.

        All workers call this together. The collectives of one channel are started in the same order on all
        workers. An engine that matches collectives by name needs no channels: they are this communicator.

        Args:
            name: of the channel, the same on all workers.
        """
        return self

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
        failure = None
        try:
            with announcing(what, shown=self.is_rank0):
                results.append(work())
        except (OSError, RuntimeError, ValueError, HpcdatError) as error:
            failure = _Failure.of(error, what, self)
        self._raise_for([failure for _, failure in self._outcomes(None, failure, what) if failure])
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
        result, failure = None, None
        try:
            with announcing(what, shown=self.is_rank0):
                result = work() if self.is_rank0 else None
        except (OSError, RuntimeError, ValueError, HpcdatError) as error:
            failure = _Failure.of(error, what, self)
        (result_of_rank0, failure), *_ = self._outcomes(result, failure, what)
        self._raise_for([failure] if failure else [])
        answer: Sendable = result_of_rank0
        return answer

    def _outcomes(
        self, result: Any, failure: _Failure | None, what: str
    ) -> list[tuple[Any, _Failure | None]]:
        """Every worker's result and failure."""
        own: JSON = [result, list(failure) if failure else None]
        every = self.all_gather_object(own, f"whether all could {what}")
        return [(result, _Failure(*failure) if failure else None) for result, failure in every]

    def _raise_for(self, failures: list[_Failure]) -> None:
        if not failures:
            return
        # Errors found by several workers are reported once, with the lowest rank.
        first = {failure.message: failure.where for failure in reversed(failures)}
        message = "\n".join(
            text if self.size == 1 else f"{text} ({where})" for text, where in reversed(first.items())
        )
        kind: type[HpcdatError] = WorkerError
        if any(failure.stopped for failure in failures):
            kind = Stopped
        elif all(failure.wrong_input for failure in failures):
            kind = InputError
        raise kind(message, everywhere=True)


class _Failure(NamedTuple):
    """Why a worker failed, as a serialisable value."""

    message: str
    wrong_input: bool
    where: str
    stopped: bool = False

    @classmethod
    def of(cls, error: Exception, what: str, comm: Communicator) -> _Failure:
        message = str(error) if isinstance(error, HpcdatError) else f"cannot {what}: {error}"
        where = f"worker {comm.rank} on {comm.host}"
        return cls(message, isinstance(error, InputError), where, isinstance(error, Stopped))
