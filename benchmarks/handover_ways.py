"""Ways to hand over examples from attack workers to update workers, each on buffers of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from hpcdat.distributed.communicator import Communicator, Pending
from hpcdat.distributed.torch_communicator import TorchCommunicator
from hpcdat.distributed.waiting import poll
from hpcdat.distributed.watchdog import Watchdog

SECONDS_TO_ANSWER = 120.0
"""Longest wait for the other workers."""
CLASSES = 1000
NOT_YET = -1
"""What a buffer is filled with before it receives images, which are in [0, 1), or labels."""


@dataclass(frozen=True)
class Place:
    """A worker's place: even ranks update, and the next higher rank attacks for each of them.

    Attributes:
        rank: of the worker.
        workers: number of all workers, even.
    """

    rank: int
    workers: int

    @property
    def attacks(self) -> bool:
        """Whether this worker sends."""
        return self.rank % 2 == 1

    @property
    def partner(self) -> int:
        """The rank that this worker sends to or receives from."""
        return self.rank - 1 if self.attacks else self.rank + 1


def examples(attacker: int, images: int, size: int) -> list[Tensor]:
    """The images, (N, 3, size, size) float32, and labels, (N,) int64, that an attack worker sends."""
    generator = torch.Generator().manual_seed(attacker)
    return [
        torch.rand(images, 3, size, size, generator=generator),
        torch.randint(CLASSES, (images,), generator=generator),
    ]


class Way(ABC):
    """One way to hand a batch over.

    Args:
        place: of this worker.
        images, size: number of images in a batch, and their height and width.
    """

    by: str
    protocol: str

    def __init__(self, place: Place, images: int, size: int) -> None:
        self.place = place
        self.expected = examples(max(place.rank, place.partner), images, size)
        self.received: list[Tensor] = []

    @abstractmethod
    def start(self) -> None:
        """Start to send, on an attack worker, or to receive."""

    @abstractmethod
    def arrived(self) -> bool:
        """Whether everything has arrived here, found out without a call of MPI, which would carry it on."""

    @abstractmethod
    def wait(self) -> None:
        """Wait until this worker's part is done."""

    def wrong(self) -> int:
        """Number of tensors that did not arrive as they were sent."""
        if self.place.attacks:
            return 0
        return sum(not torch.equal(*pair) for pair in zip(self.received, self.expected, strict=True))


class AllToAll(Way):
    """What training does: an all-to-all of all workers, most of whose messages are empty."""

    protocol = "all-to-all"

    def __init__(self, workers: Communicator, place: Place, images: int, size: int) -> None:
        super().__init__(place, images, size)
        self.by = {"horovod": "Horovod", "torch": "torch.distributed"}[workers.engine]
        self._channel = workers.channel("hand-over")
        self._counts = [0] * workers.size
        if place.attacks:
            self._counts[place.partner] = images
        self._pending: list[Pending] = []

    def start(self) -> None:  # noqa: D102
        given = self.expected if self.place.attacks else [tensor[:0] for tensor in self.expected]
        self._pending = [
            self._channel.iall_to_all_v(rows, self._counts, f"hand-over of {what}, {len(self.expected[0])}")
            for rows, what in zip(given, ("images", "labels"), strict=True)
        ]

    def arrived(self) -> bool:  # noqa: D102
        # Horovod's poll looks at a table of its own; the calls of MPI are its thread's.
        return all(pending.ready() for pending in self._pending)

    def wait(self) -> None:  # noqa: D102
        self.received = [pending.wait() for pending in self._pending]


class Pairs(Way):
    """Messages from each attack worker to its update worker, started and waited for by the main thread.

    Args:
        by: what carries them.
        message: starts to send or to receive a tensor; its arguments: the tensor, the partner's rank, a tag.
        done: whether such a message is complete.
    """

    protocol = "pairs"

    def __init__(
        self,
        by: str,
        message: Callable[[Tensor, int, int], Any],
        done: Callable[[Any], bool],
        place: Place,
        images: int,
        size: int,
    ) -> None:
        super().__init__(place, images, size)
        self.by, self._message, self._done = by, message, done
        self._watchdog = Watchdog(SECONDS_TO_ANSWER, f"worker {place.rank}")
        self._buffers = (
            self.expected if place.attacks else [torch.empty_like(tensor) for tensor in self.expected]
        )
        self._in_progress: list[Any] = []

    def start(self) -> None:  # noqa: D102
        if not self.place.attacks:
            for buffer in self._buffers:
                buffer.fill_(NOT_YET)
        self._in_progress = [
            self._message(buffer, self.place.partner, tag) for tag, buffer in enumerate(self._buffers)
        ]

    def arrived(self) -> bool:  # noqa: D102
        # A message is written from its beginning to its end.
        return all(buffer.view(-1)[-1] != NOT_YET for buffer in self._buffers)

    def wait(self) -> None:  # noqa: D102
        with self._watchdog.waiting("hand-over in pairs"):
            for message in self._in_progress:
                poll(lambda message=message: self._done(message))
        self.received = self._buffers


def mpi_pairs(world: Any, place: Place) -> Callable[[int, int], Pairs]:
    """Pairs over MPI_Isend and MPI_Irecv, for a number and a size of images.

    Args:
        world: a communicator of mpi4py for all workers, for nothing else.
        place: of this worker.
    """
    begin = world.Isend if place.attacks else world.Irecv

    def message(buffer: Tensor, partner: int, tag: int) -> Any:
        return begin(buffer.numpy(), partner, tag)

    return lambda images, size: Pairs("MPI", message, lambda one: one.Test(), place, images, size)


def torch_pairs(workers: TorchCommunicator, place: Place) -> Callable[[int, int], Pairs]:
    """Pairs over the isend and irecv of torch.distributed's Gloo, for a number and a size of images.

    Args:
        workers: connected by it.
        place: of this worker.
    """
    gloo = workers.channel("pairs")._group._gloo
    begin = gloo.send if place.attacks else gloo.recv

    def message(buffer: Tensor, partner: int, tag: int) -> dist.Work:
        return begin([buffer], partner, tag)

    # is_completed() of a message of Gloo is never true before it has been waited for.
    return lambda images, size: Pairs(
        "torch.distributed", message, lambda one: bool(one.wait()), place, images, size
    )
