"""All-reduces by torch.distributed and by Horovod's float16 compression, beside ours."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from datetime import timedelta
from functools import partial

import torch
from communication_exchanges import Gradients
from communication_operations import (
    SECONDS_TO_ANSWER,
    Maker,
    Operation,
    Source,
    count_of,
    plain,
    share_sent,
)
from torch import Tensor

from hpcdat.distributed.communicator import Communicator


class Peers(Source):
    """All-reduces of the same gradient by the packages themselves: torch.distributed, Horovod's float16.

    Args:
        gradients: what is summed.
    """

    def __init__(self, gradients: Gradients) -> None:
        self.gradients, self.workers = gradients, gradients.workers
        join_torch(self.workers, gradients.device)

    def at(self, size: int, chosen: Sequence[str]) -> list[Maker]:  # noqa: D102
        if "all-reduce" not in chosen:
            return []
        count = count_of("all-reduce", size, self.workers.size)
        makers = [self._torch, *([self._horovod_half] if self.workers.engine == "horovod" else [])]
        return [partial(make, count) for make in makers]

    def _torch(self, count: int) -> Operation:
        gradient, share = self.gradients.of(count), share_sent("all-reduce", self.workers.size)
        total = torch.empty_like(gradient.own)
        return Operation(
            plain("all-reduce", "torch.distributed", count, self.gradients.device),
            lambda: torch_sum(total),
            gradient.exact,
            share,
            share,
            lambda: self.workers.barrier("ready"),
            reset=lambda: total.copy_(gradient.own),
        )

    def _horovod_half(self, count: int) -> Operation:
        gradient, share = self.gradients.of(count), share_sent("all-reduce", self.workers.size)
        return Operation(
            plain("all-reduce", "Horovod float16", count, self.gradients.device) | {"bits": 16},
            lambda: horovod_half_sum(gradient.own),
            gradient.exact,
            share / 2,
            share,
            lambda: self.workers.barrier("ready"),
            bound=gradient.half_rounding(self.workers.size),
        )

    def close(self) -> None:  # noqa: D102
        torch.distributed.destroy_process_group()


def join_torch(workers: Communicator, device: torch.device) -> None:
    """Join torch.distributed with its own rendezvous, over NCCL on a GPU; all workers call this together."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        place = [workers.host, probe.getsockname()[1]]
    host, port = workers.all_gather_object(place, "where torch.distributed meets")[0]
    torch.distributed.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        init_method=f"tcp://{host}:{port}",
        rank=workers.rank,
        world_size=workers.size,
        timeout=timedelta(seconds=SECONDS_TO_ANSWER),
    )


def torch_sum(tensor: Tensor) -> Tensor:
    """The sum over the workers by torch.distributed, in place."""
    torch.distributed.all_reduce(tensor)
    return tensor


def horovod_half_sum(tensor: Tensor) -> Tensor:
    """The sum over the workers by Horovod with its float16 compression."""
    import horovod.torch as hvd

    total: Tensor = hvd.allreduce(tensor, op=hvd.Sum, compression=hvd.Compression.fp16, name="float16")
    return total
