"""MPI itself, through mpi4py, beside what hpcdat builds on it.

Horovod has initialised MPI in the process, and its thread goes on calling it: about every millisecond the
workers agree on what to do next. So mpi4py needs a communicator of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from communication_exchanges import Gradients
from communication_operations import (
    OPERATIONS,
    SECONDS_TO_ANSWER,
    Maker,
    Operation,
    Source,
    count_of,
    pattern,
    plain,
    rows_for_each,
    rows_of_all,
    share_sent,
)
from torch import Tensor

from hpcdat.distributed.communicator import Communicator
from hpcdat.distributed.cuda_aware_mpi import mpi_is_cuda_aware
from hpcdat.distributed.device import synchronize
from hpcdat.distributed.mpi_messages import usable_mpi
from hpcdat.distributed.watchdog import Watchdog

CPU = torch.device("cpu")
NON_BLOCKING = "non-blocking"
"""The protocol of MPI_Iallreduce and a wait for it, in its row."""


def join_mpi(workers: Communicator) -> tuple[Any, str]:
    """A communicator of mpi4py for all workers, with nobody else's messages; all workers call this together.

    Returns:
        The communicator, the same on all, or None and the reason why there is none.
    """
    mpi, reason = None, f"{workers.transport} connects the workers"
    if workers.transport == "MPI":
        mpi, reason = usable_mpi()
    reasons = [each for each in workers.all_gather_object(reason, "whether all have MPI") if each]
    if reasons or mpi is None:
        return None, reasons[0]
    return mpi.COMM_WORLD.Dup(), ""


class MpiOperations(Source):
    """MPI's own operations.

    Args:
        gradients: of workers that MPI connects, with the device of all buffers.
        world: a communicator of mpi4py for the workers, from :func:`join_mpi`.
    """

    def __init__(self, gradients: Gradients, world: Any) -> None:
        self.gradients, self.world = gradients, world
        self.workers, self.device = gradients.workers, gradients.device
        self._watchdog = Watchdog(SECONDS_TO_ANSWER, f"worker {self.workers.rank} on {self.workers.host}")

    def at(self, size: int, chosen: Sequence[str]) -> list[Maker]:  # noqa: D102
        makers: dict[str, list[Callable[[int], Operation]]] = {
            # Open MPI's non-blocking reductions cannot read GPU memory.
            "all-reduce": [self._all_reduce, *([self._iall_reduce] if self.device.type == "cpu" else [])],
            "all-gather": [self._all_gather],
            "all-to-all": [self._all_to_all],
            "broadcast": [self._broadcast],
            "point to point": [self._point_to_point],
        }
        return [
            partial(make, count_of(name, size, self.workers.size))
            for name in OPERATIONS
            if name in chosen
            for make in makers.get(name, [])
        ]

    def close(self) -> None:  # noqa: D102
        self.world.Free()

    def _waiting(self, what: str) -> AbstractContextManager[None]:
        return self._watchdog.waiting(f"MPI: {what}")

    def _align(self) -> None:
        with self._waiting("barrier"):
            self.world.Barrier()

    def _buffer(self, tensor: Tensor) -> Any:
        """A tensor as MPI's buffer, which shares its memory."""
        return tensor if tensor.is_cuda else tensor.numpy()

    def _made(
        self, name: str, call: Callable[[], object], result: Tensor, expected: Tensor, count: int
    ) -> Operation:
        share = share_sent(name, self.workers.size)

        def run() -> Tensor:
            with self._waiting(name):
                call()
            return result

        return Operation(
            plain(name, "MPI", count, self.device),
            run,
            expected,
            share,
            share,
            self._align,
            reset=lambda: self._forget(result),
        )

    def _forget(self, result: Tensor) -> None:
        result.fill_(torch.nan)
        # MPI does not wait for what torch has queued on the GPU.
        synchronize(self.device)

    def _all_reduce(self, count: int) -> Operation:
        gradient = self.gradients.of(count)
        total = torch.empty_like(gradient.own)
        own, sums = self._buffer(gradient.own), self._buffer(total)
        return self._made("all-reduce", lambda: self.world.Allreduce(own, sums), total, gradient.exact, count)

    def _iall_reduce(self, count: int) -> Operation:
        gradient = self.gradients.of(count)
        total = torch.empty_like(gradient.own)
        own, sums = self._buffer(gradient.own), self._buffer(total)
        made = self._made(
            "all-reduce", lambda: self.world.Iallreduce(own, sums).Wait(), total, gradient.exact, count
        )
        return replace(made, parameters=made.parameters | {"protocol": NON_BLOCKING})

    def _all_gather(self, count: int) -> Operation:
        expected = rows_of_all(count, self.workers, self.device)
        own, rows = expected[self.workers.rank].clone(), torch.empty_like(expected)
        one, every = self._buffer(own), self._buffer(rows)
        return self._made("all-gather", lambda: self.world.Allgather(one, every), rows, expected, count)

    def _all_to_all(self, count: int) -> Operation:
        given, expected = rows_for_each(count, self.workers, self.device)
        got = torch.empty_like(given)
        sent, received = self._buffer(given), self._buffer(got)
        return self._made("all-to-all", lambda: self.world.Alltoall(sent, received), got, expected, count)

    def _broadcast(self, count: int) -> Operation:
        first = pattern(count, 0, self.device)
        own = first.clone()
        buffer = self._buffer(own)
        made = self._made("broadcast", lambda: self.world.Bcast(buffer, 0), own, first, count)
        return made if self.workers.rank else replace(made, reset=lambda: None)

    def _point_to_point(self, count: int) -> Operation:
        """There and back between the first worker and the last; the last sends back what it has received."""
        rank, last, first = self.workers.rank, self.workers.size - 1, pattern(count, 0, self.device)
        got = torch.empty_like(first) if rank in (0, last) else first[:0]
        given, buffer = self._buffer(first), self._buffer(got)

        def call() -> None:
            if rank == 0:
                self.world.Send(given, last)
                self.world.Recv(buffer, last)
            elif rank == last:
                self.world.Recv(buffer, 0)
                self.world.Send(buffer, 0)

        def align() -> None:
            self._align()
            # The last worker is at its receive when the first one begins.
            with self._waiting("point to point"):
                if rank in (0, last):
                    other = last - rank
                    self.world.Sendrecv(bytearray(1), other, recvbuf=bytearray(1), source=other)

        expected = first if rank in (0, last) else first[:0]
        made = self._made("point to point", call, got, expected, count)
        return replace(made, align=align, timed_by=0, messages=2)


def mpi_operations(gradients: Gradients) -> tuple[list[MpiOperations], list[str]]:
    """MPI's operations with buffers in host memory, and on a GPU where MPI can read its memory.

    All workers call this together.

    Args:
        gradients: of all workers, on the device that is measured.

    Returns:
        The operations, and notes on those that are missing.
    """
    workers = gradients.workers
    world, reason = join_mpi(workers)
    if world is None:
        return [], [f"MPI itself is not measured: {reason}"]
    if gradients.device.type == "cpu":
        return [MpiOperations(gradients, world)], []
    found = [MpiOperations(Gradients(workers, CPU), world)]
    aware = workers.all_gather_object(mpi_is_cuda_aware(), "whether MPI reads GPU memory")
    if all(aware):
        return [*found, MpiOperations(gradients, world.Dup())], []
    why = "does not say so" if None in aware else "was built without CUDA"
    return found, [f"MPI from GPU memory is not measured: MPI {why}"]
