"""The workers of a run and what they do together: sum, agree, gather, broadcast."""

from __future__ import annotations

import copy
import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from hpcdat.distributed.launcher import Launched, launched
from hpcdat.distributed.srun_rendezvous import meet_under_srun
from hpcdat.distributed.watchdog import Watchdog
from hpcdat.errors import HpcdatError, InputError, WorkerError

T = TypeVar("T")

SECONDS_TO_MEET = 60
"""How long workers may take to find each other, whatever the stall timeout: each imports torch first."""

SHORTEST_PAUSE, LONGEST_PAUSE = 20e-6, 1e-3
"""Seconds between looks at a collective under way; between the two, an eighth of what has been waited."""


class Pending(Protocol):
    """A collective that is under way."""

    def wait(self) -> Any:
        """Its result, when it is there."""
        ...

    def ready(self) -> bool:
        """Whether it is there, so that nobody would have to wait."""
        ...


class Done:
    """A collective of one worker, which is over when it begins."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def wait(self) -> Any:  # noqa: D102
        return self.value

    def ready(self) -> bool:  # noqa: D102
        return True


class Workers:
    """The only worker there is; every collective is the identity.

    Attributes:
        rank: global rank, from 0.
        size: number of workers M.
        local_rank: rank on this node.
        local_size: workers on this node (q).
        nodes: number of nodes (p).
        node_of: the node of every worker, numbered from 0 in the order of ranks.
        host: this node's name.
        transport: what carries CPU tensors: ``none``, ``MPI`` or ``Gloo``.
        launcher: what started this process.
    """

    def __init__(self, launcher: str = "none") -> None:
        self.rank, self.size = 0, 1
        self.local_rank, self.local_size = 0, 1
        self.nodes = 1
        self.node_of = [0]
        self.host = socket.gethostname()
        self.transport = "none"
        self.launcher = launcher

    @property
    def is_first(self) -> bool:
        """Whether this worker writes the files and talks to the user."""
        return self.rank == 0

    def sum(self, tensors: Sequence[Tensor], name: str) -> None:
        """Replace each tensor by its sum over the workers, in place.

        Args:
            tensors: same shapes, dtypes and order on all workers; float32, float64 or int64.
            name: of the sum, the same on all workers.
        """
        self.start_sum(tensors, name).wait()

    def max(self, tensor: Tensor, name: str) -> Tensor:
        """The elementwise maximum over the workers, a new tensor."""
        largest: Tensor = self.start_max(tensor, name).wait()
        return largest

    def start_sum(self, tensors: Sequence[Tensor], name: str) -> Pending:
        """Begin to replace each tensor by its sum over the workers, in place, by all-reduce.

        Args:
            tensors: same shapes, dtypes and order on all workers; float16 to float64, int32 or int64.
            name: of the sum, the same on all workers, as for all collectives below.
        """
        return Done(tensors)

    def start_max(self, tensor: Tensor, name: str) -> Pending:
        """Begin to make the elementwise maximum over the workers, a new tensor."""
        return Done(tensor.clone())

    def start_alltoall(self, rows: Tensor, name: str) -> Pending:
        """Begin to send row i to worker i; the result is (M, ...), row j from worker j.

        Args:
            rows: (M, ...), any dtype.
            name: as above.
        """
        return Done(rows)

    def start_allgather(self, row: Tensor, name: str) -> Pending:
        """Begin to collect every worker's tensor, of the same shape on all: (M, ...) on all workers."""
        return Done(row[None])

    def start_gather(self, row: Tensor, name: str) -> Pending:
        """Begin to collect every worker's tensor on worker 0: (M, ...) there, (0, ...) elsewhere."""
        return self.start_deal(row[None], [1] + [0] * (self.size - 1), name)

    def start_send(self, row: Tensor, source: int, target: int, name: str) -> Pending:
        """Begin to send a tensor from one worker to another: (1, ...) on the latter, (0, ...) elsewhere.

        Args:
            row: of the same shape and dtype on all workers, which call this together.
            source, target: ranks.
            name: as above.
        """
        sends = self.rank == source
        counts = [int(sends and rank == target) for rank in range(self.size)]
        return self.start_deal(row[None][: int(sends)], counts, name)

    def start_deal(self, rows: Tensor, counts: Sequence[int], name: str) -> Pending:
        """Begin to send each worker as many rows as it is to get; the result is what all sent here.

        Args:
            rows: (N, ...), of the same shape behind N and the same dtype on all workers, which call this
                together; those for worker 0 come first.
            counts: rows for every worker, N in all.
            name: as above.
        """
        return Done(rows)

    def start_broadcast(self, tensor: Tensor, name: str) -> Pending:
        """Begin to replace a tensor by worker 0's, in place."""
        return Done(tensor)

    def divided(self, groups: Sequence[int]) -> Workers:
        """The workers of this one's group as a team of their own.

        All workers call this together.

        Args:
            groups: the group of every worker, in the order of ranks.
        """
        return self

    def broadcast(self, tensors: Sequence[Tensor], name: str) -> None:
        """Replace each tensor by worker 0's, in place."""
        for pending in [self.start_broadcast(tensor, f"{name}.{i}") for i, tensor in enumerate(tensors)]:
            pending.wait()

    def gather(self, value: Any, name: str) -> list[Any]:
        """Every worker's value in the order of ranks, on all workers; any JSON value."""
        return [value]

    def close(self) -> None:
        """Leave the other workers, all of them together; nothing collective can follow."""

    def together(self, what: str, work: Callable[[], T]) -> T:
        """Do some work on each worker; if it fails on one, it fails on all.

        Args:
            what: the work, as in "cannot ...".
            work: may do something else on each worker, but nothing collective.

        Raises:
            InputError: it failed, wherever it did, for an input that is wrong.
            WorkerError: it failed for another reason. The message names reason, worker and host.
        """
        results: list[T] = []
        failure = None
        try:
            results.append(work())
        except (OSError, RuntimeError, ValueError, HpcdatError) as error:
            wrong_input = isinstance(error, InputError)
            text = str(error) if isinstance(error, HpcdatError) else f"cannot {what}: {error}"
            failure = [text, wrong_input, f"worker {self.rank} on {self.host}"]
        failures = [f for f in self.gather(failure, f"whether all could {what}") if f is not None]
        if failures:
            # The same complaint from several workers is told once.
            told = {text: where for text, _, where in reversed(failures)}
            message = "\n".join(
                text if self.size == 1 else f"{text} ({where})" for text, where in told.items()
            )
            kind = InputError if all(wrong_input for _, wrong_input, _ in failures) else WorkerError
            raise kind(message, everywhere=True)
        (result,) = results
        return result


class HorovodWorkers(Workers):
    """Workers over Horovod: MPI or Gloo for CPU tensors, NCCL for GPU tensors.

    Args:
        place: what the launcher said.
        stall_timeout: longest wait for the others, seconds.
        divisible: whether they may be divided into teams.

    Raises:
        WorkerError: Horovod sees another number of workers than the launcher started.
    """

    def __init__(self, place: Launched, stall_timeout: float, *, divisible: bool = False) -> None:
        super().__init__(place.launcher)
        if place.launcher == "srun":
            meet_under_srun()
        os.environ.setdefault("HOROVOD_GLOO_TIMEOUT_SECONDS", str(int(max(stall_timeout, SECONDS_TO_MEET))))
        os.environ.setdefault("HOROVOD_LOG_LEVEL", "fatal")
        # Horovod's thread shares its core with the one that computes, and must leave it to that one while it
        # waits in MPI for the other workers.
        os.environ.setdefault("OMPI_MCA_mpi_yield_when_idle", "1")
        if divisible:
            os.environ["HOROVOD_DYNAMIC_PROCESS_SETS"] = "1"
        self._watchdog = Watchdog(stall_timeout, f"worker {place.rank} on {self.host}")
        with self._watchdog.waiting("to meet", at_least=SECONDS_TO_MEET):
            import horovod.torch as hvd

            hvd.init()
        self._hvd = hvd
        self._where: dict[str, Any] = {}
        self._root, self._prefix = 0, ""
        self._process_sets = {tuple(range(hvd.size())): hvd.global_process_set}
        self.rank, self.size = hvd.rank(), hvd.size()
        self.local_rank, self.local_size = hvd.local_rank(), hvd.local_size()
        self.nodes = hvd.cross_size()
        self.transport = "MPI" if hvd.mpi_enabled() else "Gloo"
        if self.size != place.size:
            raise WorkerError(
                f"{place.launcher} started {place.size} workers but Horovod sees {self.size}: its MPI is not "
                f"the one of this {place.launcher}. Use the mpirun of the environment "
                "(.venv/bin/mpirun), or `hpcdat train JOB.yaml -np N`."
            )

        sizes, cross_ranks, hosts = zip(
            *self.gather([self.local_size, hvd.cross_rank(), self.host], "nodes"), strict=True
        )
        # With unequal nodes Horovod's cross rank says nothing of the node.
        places = cross_ranks if len(set(sizes)) == 1 else hosts
        self.node_of = [list(dict.fromkeys(places)).index(place) for place in places]

    def start_sum(self, tensors: Sequence[Tensor], name: str) -> Pending:  # noqa: D102
        with self._with_the_others(name):
            handle = self._hvd.grouped_allreduce_async_(
                list(tensors), name=self._prefix + name, op=self._hvd.Sum, **self._where
            )
        return _Handle(self, handle, name)

    def start_max(self, tensor: Tensor, name: str) -> Pending:  # noqa: D102
        with self._with_the_others(name):
            handle = self._hvd.allreduce_async(
                tensor, name=self._prefix + name, op=self._hvd.Max, **self._where
            )
        return _Handle(self, handle, name)

    def start_alltoall(self, rows: Tensor, name: str) -> Pending:  # noqa: D102
        with self._with_the_others(name):
            handle = self._hvd.alltoall_async(rows, name=self._prefix + name, **self._where)
        return _Handle(self, handle, name, lambda received: received[0])

    def start_allgather(self, row: Tensor, name: str) -> Pending:  # noqa: D102
        with self._with_the_others(name):
            handle = self._hvd.allgather_async(row[None], name=self._prefix + name, **self._where)
        return _Handle(self, handle, name)

    def start_deal(self, rows: Tensor, counts: Sequence[int], name: str) -> Pending:  # noqa: D102
        splits = torch.tensor(list(counts), dtype=torch.int32)
        with self._with_the_others(name):
            handle = self._hvd.alltoall_async(rows, splits, name=self._prefix + name, **self._where)
        return _Handle(self, handle, name, lambda received: received[0])

    def start_broadcast(self, tensor: Tensor, name: str) -> Pending:  # noqa: D102
        with self._with_the_others(name):
            handle = self._hvd.broadcast_async_(
                tensor, root_rank=self._root, name=self._prefix + name, **self._where
            )
        return _Handle(self, handle, name)

    def divided(self, groups: Sequence[int]) -> Workers:  # noqa: D102
        # Process sets are made by all workers in the same order.
        team = self
        for group in sorted(set(groups)):
            ranks = [rank for rank, g in enumerate(groups) if g == group]
            if tuple(ranks) not in self._process_sets:
                with self._with_the_others("a process set"):
                    self._process_sets[tuple(ranks)] = self._hvd.add_process_set(ranks)
            if self.rank in ranks:
                team = copy.copy(self)
                team.rank, team.size = ranks.index(self.rank), len(ranks)
                team._root, team._where = ranks[0], {"process_set": self._process_sets[tuple(ranks)]}
                team._prefix = f"{self._prefix}of {ranks}: "
        return team

    def gather(self, value: Any, name: str) -> list[Any]:  # noqa: D102
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        with self._with_the_others(name):
            lengths = self._hvd.allgather(torch.tensor([len(text)]), name=f"{name}.length", **self._where)
            texts = self._hvd.allgather(text, name=name, **self._where).split(lengths.tolist())
        return [json.loads(bytes(part.tolist())) for part in texts]

    def close(self) -> None:  # noqa: D102
        # Horovod ends for all when it ends for one: another team may still be at its last collective.
        self.gather(None, "all have come to the end")
        with self._watchdog.waiting("to end"):
            self._hvd.shutdown()

    @contextmanager
    def _with_the_others(self, what: str) -> Iterator[None]:
        from horovod.common.exceptions import HorovodInternalError

        try:
            with self._watchdog.waiting(what):
                yield
        except HorovodInternalError as error:
            raise WorkerError(
                f"lost the other workers ({what}): one of them has ended or cannot be reached; its own or "
                f"its launcher's message names it. Horovod says: {str(error).splitlines()[0]}"
            ) from None


class _Handle:
    """A collective of Horovod's that is under way."""

    def __init__(
        self,
        workers: HorovodWorkers,
        handle: Any,
        name: str,
        result: Callable[[Any], Any] = lambda output: output,
    ) -> None:
        self._workers, self._handle, self._name, self._result = workers, handle, name, result

    def wait(self) -> Any:
        hvd, start = self._workers._hvd, time.monotonic()
        with self._workers._with_the_others(self._name):
            # Horovod's own wait asks without a pause: it would take a core, and Python's lock, from
            # the computation that the exchange runs beside.
            while not hvd.poll(self._handle):
                waited = time.monotonic() - start
                time.sleep(min(max(SHORTEST_PAUSE, waited / 8), LONGEST_PAUSE))
            return self._result(hvd.synchronize(self._handle))

    def ready(self) -> bool:
        return bool(self._workers._hvd.poll(self._handle))


def start_workers(stall_timeout: float, *, divisible: bool = False) -> Workers:
    """Join the other workers of this run, or be the only one.

    Args:
        stall_timeout: longest wait for the others, seconds.
        divisible: whether they may be divided into teams. Horovod then takes a lock for as long as it
            talks to the other workers, which every new collective waits for, so only where it is needed.

    Raises:
        WorkerError: the workers could not find each other.
    """
    place = launched()
    if place.size == 1:
        return Workers(place.launcher)
    try:
        return HorovodWorkers(place, stall_timeout, divisible=divisible)
    except ImportError as error:
        raise WorkerError(f"{place.size} workers need Horovod, which does not start: {error}") from error
    except RuntimeError as error:
        raise WorkerError(f"worker {place.rank} of {place.size} cannot join the others: {error}") from error
