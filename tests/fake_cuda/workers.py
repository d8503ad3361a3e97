"""Workers that all do the same, of which one computes."""

import copy

import torch

from hpcdat.distributed.single_process import Completed, SingleProcess

ADDED_BY_NCCL = {
    torch.uint8,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.float32,
    torch.float64,
}
"""Dtypes of sums and maxima that NCCL computes both in torch.distributed and in Horovod 0.28, which has no
bfloat16; neither has 16-bit integers."""


def check_sent(workers):
    """Whether NCCL can carry what was sent: gathered and exchanged rows are bytes, whatever their dtype."""
    assert workers.sent
    for kind, dtype, device in workers.sent:
        assert device == "cuda", kind
        assert dtype in ADDED_BY_NCCL or kind not in ("sum", "max"), (kind, dtype)


class EqualWorkers(SingleProcess):
    """Rank 0 of several workers, whose others send what it sends.

    Attributes:
        sent: of each collective, its kind and the dtypes and kinds of devices of what it sends.
    """

    def __init__(self, size, node_of=None):
        super().__init__()
        self.size, self.engine = size, "torch"
        self.node_of = node_of or [0] * size
        self.nodes = len(set(self.node_of))
        self.local_size = self.node_of.count(0)
        self.sent = []

    def _note(self, kind, *tensors):
        self.sent += [(kind, tensor.dtype, tensor.device.type) for tensor in tensors]

    def iall_reduce(self, tensors, name):
        self._note("sum", *tensors)
        return Completed(list(tensors))

    def iall_reduce_max(self, tensor, name):
        self._note("max", tensor)
        return Completed(tensor.clone())

    def iall_to_all(self, rows, name):
        self._note("all-to-all", rows)
        return Completed(rows)

    def iall_to_all_v(self, rows, counts, name):
        self._note("all-to-all", rows)
        return Completed(rows if len(rows) else rows.new_empty((4, *rows.shape[1:])))

    def igather(self, row, name):
        self._note("gather", row)
        return Completed(row.expand(self.size, *row.shape).clone())

    def iall_gather(self, row, name):
        self._note("all-gather", row)
        return Completed(row.expand(self.size, *row.shape).clone())

    def ibroadcast(self, tensor, name):
        self._note("broadcast", tensor)
        return Completed(tensor)

    def broadcast_object(self, value, name):
        return value

    def gather_object(self, value, name):
        return [value] * self.size

    def split(self, groups):
        part = copy.copy(self)
        part.size = list(groups).count(groups[0])
        return part
