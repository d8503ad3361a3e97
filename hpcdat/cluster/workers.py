"""The workers of a run and what they do together: sum, agree, gather, broadcast."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

from hpcdat.cluster.launched import Launched, launched
from hpcdat.cluster.srun import meet_under_srun
from hpcdat.cluster.watchdog import Watchdog
from hpcdat.errors import HpcdatError, InputError, WorkerError

T = TypeVar("T")


class Workers:
    """The only worker there is; every collective is the identity.

    Attributes:
        rank: global rank, from 0.
        size: number of workers M.
        local_rank: rank on this node.
        local_size: workers on this node (q).
        nodes: number of nodes (p).
        host: this node's name.
        transport: what carries CPU tensors: ``none``, ``MPI`` or ``Gloo``.
        launcher: what started this process.
    """

    def __init__(self, launcher: str = "none") -> None:
        self.rank, self.size = 0, 1
        self.local_rank, self.local_size = 0, 1
        self.nodes = 1
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

    def max(self, tensor: Tensor, name: str) -> Tensor:
        """The elementwise maximum over the workers, a new tensor."""
        return tensor.clone()

    def broadcast(self, tensors: Sequence[Tensor], name: str) -> None:
        """Replace each tensor by worker 0's, in place."""

    def gather(self, value: Any, name: str) -> list[Any]:
        """Every worker's value in the order of ranks, on all workers; any JSON value."""
        return [value]

    def close(self) -> None:
        """Leave the other workers in peace; nothing collective can follow."""

    def together(self, what: str, work: Callable[[], T]) -> T:
        """Do some work on each worker; if it fails on one, it fails on all.

        Args:
            what: the work, as in "cannot ...".
            work: may do something else on each worker, but nothing collective.

        Raises:
            InputError: it failed, wherever it did, for an input that is wrong.
            WorkerError: it failed for another reason. The message names reason, worker and host.
        """
        result, failure = None, None
        try:
            result = work()
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
        return result


class HorovodWorkers(Workers):
    """Workers over Horovod: MPI or Gloo for CPU tensors, NCCL for GPU tensors.

    Args:
        place: what the launcher said.
        stall_timeout: longest wait for the others, seconds.

    Raises:
        WorkerError: Horovod sees another number of workers than the launcher started.
    """

    def __init__(self, place: Launched, stall_timeout: float) -> None:
        super().__init__(place.launcher)
        if place.launcher == "srun":
            meet_under_srun()
        os.environ.setdefault("HOROVOD_GLOO_TIMEOUT_SECONDS", str(int(stall_timeout)))
        os.environ.setdefault("HOROVOD_LOG_LEVEL", "fatal")
        self._watchdog = Watchdog(stall_timeout, f"worker {place.rank} on {self.host}")
        with self._watchdog.waiting("to meet"):
            import horovod.torch as hvd

            hvd.init()
        self._hvd = hvd
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

    def sum(self, tensors: Sequence[Tensor], name: str) -> None:  # noqa: D102
        with self._with_the_others(name):
            self._hvd.grouped_allreduce_(list(tensors), name=name, op=self._hvd.Sum)

    def max(self, tensor: Tensor, name: str) -> Tensor:  # noqa: D102
        with self._with_the_others(name):
            return self._hvd.allreduce(tensor, name=name, op=self._hvd.Max)

    def broadcast(self, tensors: Sequence[Tensor], name: str) -> None:  # noqa: D102
        with self._with_the_others(name):
            handles = [
                self._hvd.broadcast_async_(tensor, root_rank=0, name=f"{name}.{i}")
                for i, tensor in enumerate(tensors)
            ]
            for handle in handles:
                self._hvd.synchronize(handle)

    def gather(self, value: Any, name: str) -> list[Any]:  # noqa: D102
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        with self._with_the_others(name):
            lengths = self._hvd.allgather(torch.tensor([len(text)]), name=f"{name}.length")
            texts = self._hvd.allgather(text, name=name).split(lengths.tolist())
        return [json.loads(bytes(part.tolist())) for part in texts]

    def close(self) -> None:  # noqa: D102
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


def start_workers(stall_timeout: float) -> Workers:
    """Join the other workers of this run, or be the only one.

    Args:
        stall_timeout: longest wait for the others, seconds.

    Raises:
        WorkerError: the workers could not find each other.
    """
    place = launched()
    if place.size == 1:
        return Workers(place.launcher)
    try:
        return HorovodWorkers(place, stall_timeout)
    except ImportError as error:
        raise WorkerError(f"{place.size} workers need Horovod, which does not start: {error}") from error
    except RuntimeError as error:
        raise WorkerError(f"worker {place.rank} of {place.size} cannot join the others: {error}") from error
