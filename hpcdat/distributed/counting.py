"""Count the messages and bytes that one worker hands to its communicator and receives from it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hpcdat.distributed.communicator import JSON, Communicator, Pending

BYTES_PER_COUNT = 4
"""Bytes of the number of rows for one worker in an all-to-all, as Horovod exchanges them."""


@dataclass
class Message:
    """One collective, as one worker takes part in it.

    Attributes:
        name: of the collective.
        sent: bytes of what this worker gives.
        received: bytes of what it gets; known once it has waited for the result.
        counts: bytes of the numbers of rows for every worker that an all-to-all exchanges first.
    """

    name: str
    sent: int
    received: int = 0
    counts: int = 0


class Counted(Communicator):
    """A communicator that records its collectives; otherwise it behaves as the one it wraps.

    Args:
        inner: the communicator of this worker.

    Attributes:
        messages: in the order in which they were started, also those of communicators split off.
    """

    def __init__(self, inner: Communicator) -> None:
        super().__init__(inner.launcher)
        self.inner = inner
        self.rank, self.size, self.host = inner.rank, inner.size, inner.host
        self.local_rank, self.local_size = inner.local_rank, inner.local_size
        self.nodes, self.node_of = inner.nodes, inner.node_of
        self.engine, self.transport, self.nccl = inner.engine, inner.transport, inner.nccl
        self.messages: list[Message] = []

    def share_of_cores(self) -> int:  # noqa: D102
        return self.inner.share_of_cores()

    def iall_reduce(self, tensors: Sequence[Tensor], name: str) -> Pending:  # noqa: D102
        return self._count(self.inner.iall_reduce(tensors, name), name, _bytes(*tensors))

    def iall_reduce_max(self, tensor: Tensor, name: str) -> Pending:  # noqa: D102
        return self._count(self.inner.iall_reduce_max(tensor, name), name, _bytes(tensor))

    def iall_to_all(self, rows: Tensor, name: str) -> Pending:  # noqa: D102
        return self._count(self.inner.iall_to_all(rows, name), name, _bytes(rows))

    def iall_to_all_v(self, rows: Tensor, counts: Sequence[int], name: str) -> Pending:  # noqa: D102
        pending = self.inner.iall_to_all_v(rows, counts, name)
        return self._count(pending, name, _bytes(rows), BYTES_PER_COUNT * len(counts))

    def iall_gather(self, row: Tensor, name: str) -> Pending:  # noqa: D102
        return self._count(self.inner.iall_gather(row, name), name, _bytes(row))

    def ibroadcast(self, tensor: Tensor, name: str) -> Pending:  # noqa: D102
        pending = self.inner.ibroadcast(tensor, name)
        return self._count(pending, name, _bytes(tensor) if self.is_rank0 else 0)

    def all_gather_object(self, value: JSON, name: str) -> list[Any]:  # noqa: D102
        message = Message(name, len(json.dumps(value)))
        self.messages.append(message)
        every = self.inner.all_gather_object(value, name)
        message.received = sum(len(json.dumps(one)) for one in every)
        return every

    def split(self, groups: Sequence[int]) -> Communicator:  # noqa: D102
        part = Counted(self.inner.split(groups))
        part.messages = self.messages
        return part

    def close(self) -> None:  # noqa: D102
        self.inner.close()

    def _count(self, pending: Pending, name: str, sent: int, counts: int = 0) -> Pending:
        message = Message(name, sent, counts=counts)
        self.messages.append(message)
        return _Received(pending, message)


class _Received:
    """A collective in progress, the size of whose result is recorded."""

    def __init__(self, pending: Pending, message: Message) -> None:
        self._pending, self._message = pending, message

    def wait(self) -> Any:
        result = self._pending.wait()
        self._message.received = _bytes(*(result if isinstance(result, list | tuple) else [result]))
        return result

    def ready(self) -> bool:
        return self._pending.ready()

    def wait_or(self, other: Callable[[], bool]) -> None:
        self._pending.wait_or(other)


def _bytes(*tensors: Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
