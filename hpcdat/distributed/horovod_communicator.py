"""Communication through Horovod, over MPI or Gloo for CPU tensors and NCCL for GPU tensors."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from hpcdat.distributed.addresses import check_own_name
from hpcdat.distributed.communicator import JSON, Communicator, Pending
from hpcdat.distributed.cores import cgroup_quota, share_of_cores
from hpcdat.distributed.horovod_over_srun import over_mpi, srun_variables
from hpcdat.distributed.launcher import Launched, left_over
from hpcdat.distributed.mpi_messages import MpiMessages, usable_mpi
from hpcdat.distributed.stop_signals import StopRequest
from hpcdat.distributed.waiting import SECONDS_TO_CONNECT, Wait, poll, wait_in_thread
from hpcdat.distributed.watchdog import Watchdog
from hpcdat.errors import WorkerError
from hpcdat.seeds import derive


class HorovodCommunicator(Communicator):
    """Workers connected by Horovod: MPI or Gloo for CPU tensors, NCCL for GPU tensors.

    Args:
        place: rank and size according to the launcher.
        stall_timeout: longest wait for the others, seconds.
        stop: request to stop, which ends the wait for a connection.
        divisible: whether :meth:`split` may be called.

    Raises:
        InputError: MPI is asked for under an srun that does not serve PMIx.
        WorkerError: Horovod finds another number of workers than the launcher started, or the others did not
            connect in time, or this node's name does not resolve.
        Stopped: a stop was requested before the workers had connected.
    """

    def __init__(
        self,
        place: Launched,
        stall_timeout: float,
        *,
        stop: StopRequest | None = None,
        divisible: bool = False,
    ) -> None:
        super().__init__(place.launcher)
        longest = max(stall_timeout, SECONDS_TO_CONNECT)
        if place.launcher != "mpirun" and not (place.launcher == "srun" and over_mpi()):
            check_own_name(stop)
            if place.launcher == "srun":
                os.environ.update(srun_variables(longest, stop))
        os.environ.setdefault("HOROVOD_GLOO_TIMEOUT_SECONDS", str(int(longest)))
        os.environ.setdefault("HOROVOD_LOG_LEVEL", "fatal")
        # Horovod's thread shares a core with the computation, and must yield it while it waits in MPI.
        os.environ.setdefault("OMPI_MCA_mpi_yield_when_idle", "1")
        if divisible:
            os.environ["HOROVOD_DYNAMIC_PROCESS_SETS"] = "1"
        self._watchdog = Watchdog(stall_timeout, f"worker {place.rank} on {self.host}")
        with self._watchdog.waiting("connecting", at_least=SECONDS_TO_CONNECT):
            import horovod.torch as hvd

            others = f"the other {place.size - 1} of {place.size} workers to connect ({place.launcher})"
            wait_in_thread(hvd.init, Wait(others, stop, shown=place.rank == 0))
        self._hvd = hvd
        self._options: dict[str, Any] = {}
        self._root, self._prefix = 0, ""
        self._messages: MpiMessages | None = None
        self._all_messages: list[MpiMessages] = []
        self._process_sets = {tuple(range(hvd.size())): hvd.global_process_set}
        self.rank, self.size = hvd.rank(), hvd.size()
        self._ranks = list(range(self.size))
        self.local_rank, self.local_size = hvd.local_rank(), hvd.local_size()
        self.nodes = hvd.cross_size()
        self.engine, self.transport = "horovod", "MPI" if hvd.mpi_enabled() else "Gloo"
        self.nccl = bool(hvd.nccl_built())
        if self.size != place.size:
            raise WorkerError(
                f"{place.launcher} started {place.size} workers but Horovod finds {self.size}: its MPI is "
                f"not that of this {place.launcher}. Use the mpirun of the environment "
                "(.venv/bin/mpirun), srun without HOROVOD_CONTROLLER=mpi, or let hpcdat start the workers. "
                f"If there is no such launcher, unset {' '.join(left_over(place.launcher))}, which are left "
                "over in this shell"
            )

        own = torch.tensor([self.local_size, hvd.cross_rank(), derive(0, self.host)])
        sizes, cross_ranks, hosts = self.iall_gather(own, "nodes").wait().unbind(1)
        # If nodes have different numbers of workers, Horovod's cross rank does not identify the node.
        places = (cross_ranks if (sizes == sizes[0]).all() else hosts).tolist()
        numbers = {place: number for number, place in enumerate(dict.fromkeys(places))}
        self.node_of = [numbers[place] for place in places]
        cores = sorted(os.sched_getaffinity(0))
        here = [rank for rank, node in enumerate(self.node_of) if node == self.node_of[self.rank]]
        self._share_of_cores = share_of_cores(
            cores, self.exchange_objects(cores, here, "cores"), cgroup_quota()
        )

    def share_of_cores(self) -> int:  # noqa: D102
        return self._share_of_cores

    def iall_reduce(self, tensors: Sequence[Tensor], name: str) -> Pending:  # noqa: D102
        with self._bounded(name):
            handle = self._hvd.grouped_allreduce_async_(
                list(tensors), name=self._prefix + name, op=self._hvd.Sum, **self._options
            )
        return _Handle(self, handle, name)

    def iall_reduce_max(self, tensor: Tensor, name: str) -> Pending:  # noqa: D102
        with self._bounded(name):
            handle = self._hvd.allreduce_async(
                tensor, name=self._prefix + name, op=self._hvd.Max, **self._options
            )
        return _Handle(self, handle, name)

    def iall_to_all(self, rows: Tensor, name: str) -> Pending:  # noqa: D102
        with self._bounded(name):
            handle = self._hvd.alltoall_async(rows, name=self._prefix + name, **self._options)
        return _Handle(self, handle, name, lambda received: received[0])

    def iall_gather(self, row: Tensor, name: str) -> Pending:  # noqa: D102
        with self._bounded(name):
            handle = self._hvd.allgather_async(row[None], name=self._prefix + name, **self._options)
        return _Handle(self, handle, name)

    def iall_to_all_v(self, rows: Tensor, counts: Sequence[int], name: str) -> Pending:  # noqa: D102
        splits = torch.tensor(list(counts), dtype=torch.int32)
        with self._bounded(name):
            handle = self._hvd.alltoall_async(rows, splits, name=self._prefix + name, **self._options)
        return _Handle(self, handle, name, lambda received: received[0])

    def ineighbor_all_to_all_v(  # noqa: D102
        self, rows: Tensor, sends: Mapping[int, int], receives: Mapping[int, int], name: str
    ) -> Pending:
        if self._messages is None or rows.is_cuda:
            return super().ineighbor_all_to_all_v(rows, sends, receives, name)
        return self._messages.start(rows, sends, receives, name)

    def ibroadcast(self, tensor: Tensor, name: str) -> Pending:  # noqa: D102
        with self._bounded(name):
            handle = self._hvd.broadcast_async_(
                tensor, root_rank=self._root, name=self._prefix + name, **self._options
            )
        return _Handle(self, handle, name)

    def channel(self, name: str, *, neighbors: bool = False) -> Communicator:  # noqa: D102
        if not neighbors or self.transport != "MPI":
            return self
        mpi, _ = usable_mpi()
        unusable = torch.tensor([int(mpi is None)])
        if self.all_reduce_max(unusable, f"whether MPI can carry messages: {name}").item():
            return self
        own = copy.copy(self)
        own._messages = MpiMessages(
            mpi, self._ranks, lambda what: self._watchdog.bounded(what, mpi.Exception, "MPI")
        )
        # MPI may use the memory of messages that nobody waits for any more, as after a stop.
        self._all_messages.append(own._messages)
        return own

    def split(self, groups: Sequence[int]) -> Communicator:  # noqa: D102
        # All workers must create the process sets in the same order.
        own = self
        for number in sorted(set(groups)):
            ranks = [rank for rank, group in enumerate(groups) if group == number]
            if tuple(ranks) not in self._process_sets:
                with self._bounded("a process set"):
                    self._process_sets[tuple(ranks)] = self._hvd.add_process_set(ranks)
            if self.rank in ranks:
                own = copy.copy(self)
                own.rank, own.size = ranks.index(self.rank), len(ranks)
                own._ranks, own._messages = ranks, None
                own._root, own._options = ranks[0], {"process_set": self._process_sets[tuple(ranks)]}
                own._prefix = f"{self._prefix}of {ranks}: "
        return own

    def all_gather_object(self, value: JSON, name: str) -> list[Any]:  # noqa: D102
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        with self._bounded(name):
            lengths = self._hvd.allgather(torch.tensor([len(text)]), name=f"{name}.length", **self._options)
            texts = self._hvd.allgather(text, name=name, **self._options).split(lengths.tolist())
        return [json.loads(bytes(part.tolist())) for part in texts]

    def close(self) -> None:  # noqa: D102
        # Horovod shuts down for all workers at once; another group may still be in its last collective.
        self.barrier("whether all are done")
        with self._watchdog.waiting("disconnecting"):
            self._hvd.shutdown()

    def _bounded(self, what: str) -> AbstractContextManager[None]:
        from horovod.common.exceptions import HorovodInternalError

        return self._watchdog.bounded(what, HorovodInternalError, "Horovod")


class _Handle:
    """A Horovod collective in progress."""

    def __init__(
        self,
        workers: HorovodCommunicator,
        handle: Any,
        name: str,
        result: Callable[[Any], Any] = lambda output: output,
    ) -> None:
        self._workers, self._handle, self._name, self._result = workers, handle, name, result

    def wait(self) -> Any:
        with self._workers._bounded(self._name):
            poll(self.ready)
            return self._result(self._workers._hvd.synchronize(self._handle))

    def wait_or(self, other: Callable[[], bool]) -> None:
        with self._workers._bounded(self._name):
            poll(lambda: self.ready() or other())

    def ready(self) -> bool:
        return bool(self._workers._hvd.poll(self._handle))
