"""Messages from one worker to another over the MPI that Horovod has initialised, through mpi4py.

Horovod has none: its all-to-all begins when all workers have agreed on it. Horovod's thread calls MPI in
every cycle, so another thread may call it only where MPI grants MPI_THREAD_MULTIPLE. Open MPI moves a long
message on only within calls of MPI, whatever they are for: those of Horovod's thread while this worker
computes, and those of the wait for the message.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from hpcdat.distributed.waiting import poll
from hpcdat.seeds import derive

TAGS = 2**15
"""Number of tags that every MPI has."""


def usable_mpi() -> tuple[Any, str]:
    """The module ``mpi4py.MPI`` for use beside Horovod, which has initialised MPI and will finalise it.

    Returns:
        The module, or None and the reason why it cannot be used.
    """
    try:
        import mpi4py

        mpi4py.rc.initialize = mpi4py.rc.finalize = False
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        return None, f"mpi4py cannot be used: {error}"
    if not MPI.Is_initialized():
        return None, "mpi4py was built for another MPI than Horovod"
    if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
        return None, "Horovod's MPI does not allow calls from several threads at once (MPI_THREAD_MULTIPLE)"
    return MPI, ""


class MpiMessages:
    """Messages between some workers, matched by name and, of one name, by their order.

    Args:
        mpi: from :func:`usable_mpi`.
        ranks: of these workers among all, all of which construct this together.
        bounded: bounds the wait for the others; its argument names what is awaited.
    """

    def __init__(
        self, mpi: Any, ranks: Sequence[int], bounded: Callable[[str], AbstractContextManager[None]]
    ) -> None:
        self._mpi, self._bounded = mpi, bounded
        self._in_progress: list[NeighborExchange] = []
        world = mpi.COMM_WORLD
        with bounded("a communicator of MPI"):
            self._workers = world.Create_group(world.Get_group().Incl(list(ranks)))

    def start(
        self, rows: Tensor, sends: Mapping[int, int], receives: Mapping[int, int], name: str
    ) -> NeighborExchange:
        """Begin to send and to receive; the arguments are those of ``ineighbor_all_to_all_v``.

        Args:
            rows: on the CPU.
            sends, receives: as there.
            name: as there.
        """
        with self._bounded(name):
            self._in_progress = [one for one in self._in_progress if not one.ready()]
            started = self._start(rows.detach().contiguous(), sends, receives, name)
        self._in_progress.append(started)
        return started

    def _start(
        self, rows: Tensor, sends: Mapping[int, int], receives: Mapping[int, int], name: str
    ) -> NeighborExchange:
        tag = derive(0, name) % TAGS
        received = rows.new_empty((sum(receives.values()), *rows.shape[1:]))
        given = rows.split([sends[rank] for rank in sorted(sends)])
        spaces = received.split([receives[rank] for rank in sorted(receives)])
        # Receives first: a message that is not expected is copied once more.
        into = [self._workers.Irecv(_bytes(part), source, tag) for source, part in _zip(receives, spaces)]
        out = [self._workers.Isend(_bytes(part), target, tag) for target, part in _zip(sends, given)]
        return NeighborExchange(self._mpi, into, out, spaces, rows, lambda: self._bounded(name))


class NeighborExchange:
    """Messages in progress, to and from this worker.

    Args:
        mpi: as above.
        into, out: requests to receive and to send.
        spaces: what each of the former receives into.
        rows: what the latter send; MPI reads it until they are complete.
        bounded: bounds the wait.
    """

    def __init__(
        self,
        mpi: Any,
        into: Sequence[Any],
        out: Sequence[Any],
        spaces: Sequence[Tensor],
        rows: Tensor,
        bounded: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._bytes, self._rows, self._bounded = mpi.BYTE, rows, bounded
        self._spaces, self._statuses = spaces, [mpi.Status() for _ in into]
        # Only the test that completes a request tells how much was received.
        self._open = [*zip(into, self._statuses, strict=True), *((request, None) for request in out)]

    def ready(self) -> bool:  # noqa: D102
        self._open = [(request, status) for request, status in self._open if not request.Test(status)]
        return not self._open

    def wait(self) -> Tensor:  # noqa: D102
        with self._bounded():
            poll(self.ready)
        parts = []
        for space, status in zip(self._spaces, self._statuses, strict=True):
            row = space.element_size() * space[:1].numel()
            parts.append(space[: status.Get_count(self._bytes) // row if row else 0])
        return parts[0] if len(parts) == 1 else torch.cat([*parts, self._rows[:0]])

    def wait_or(self, other: Callable[[], bool]) -> None:  # noqa: D102
        with self._bounded():
            poll(lambda: self.ready() or other())


def _zip(counts: Mapping[int, int], parts: Sequence[Tensor]) -> zip[tuple[int, Tensor]]:
    return zip(sorted(counts), parts, strict=True)


def _bytes(part: Tensor) -> Any:
    """The memory of a part, of any dtype."""
    return part.view(-1).view(torch.uint8).numpy()
