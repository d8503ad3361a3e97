"""The communicator of a run with one worker: every collective is the identity."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from hpcdat.distributed.communicator import JSON, Communicator, Pending


class Completed:
    """A collective whose result is available immediately."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def wait(self) -> Any:  # noqa: D102
        return self.value

    def ready(self) -> bool:  # noqa: D102
        return True

    def wait_or(self, other: Callable[[], bool]) -> None:  # noqa: D102
        pass


class SingleProcess(Communicator):
    """The communicator of the only worker.

    Args:
        launcher: what started this process.
    """

    def __init__(self, launcher: str = "none") -> None:
        super().__init__(launcher)
        self.rank, self.size = 0, 1
        self.local_rank, self.local_size = 0, 1
        self.nodes, self.node_of = 1, [0]
        self.transport = "none"

    def iall_reduce(self, tensors: Sequence[Tensor], name: str) -> Pending:  # noqa: D102
        return Completed(tensors)

    def iall_reduce_max(self, tensor: Tensor, name: str) -> Pending:  # noqa: D102
        return Completed(tensor.clone())

    def iall_to_all(self, rows: Tensor, name: str) -> Pending:  # noqa: D102
        return Completed(rows)

    def iall_to_all_v(self, rows: Tensor, counts: Sequence[int], name: str) -> Pending:  # noqa: D102
        return Completed(rows)

    def iall_gather(self, row: Tensor, name: str) -> Pending:  # noqa: D102
        return Completed(row[None])

    def ibroadcast(self, tensor: Tensor, name: str) -> Pending:  # noqa: D102
        return Completed(tensor)

    def all_gather_object(self, value: JSON, name: str) -> list[Any]:  # noqa: D102
        # As text, so that what several workers could not send fails with one too.
        return [json.loads(json.dumps(value))]

    def split(self, groups: Sequence[int]) -> Communicator:  # noqa: D102
        return self

    def close(self) -> None:  # noqa: D102
        pass
