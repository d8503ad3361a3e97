"""The torch.distributed engine among workers that all do the same, over an NCCL whose kernels have a stream.

As torch's ProcessGroupNCCL: a collective's kernel waits for what was queued on the current stream when it was
started, and its handle's ``wait()`` has the current stream wait for the kernel. The handle keeps the tensors.
"""

from concurrent.futures import Future
from contextlib import nullcontext

import torch

from hpcdat.distributed.communicator import Communicator
from hpcdat.distributed.torch_communicator import TorchCommunicator


class NcclWorkers(TorchCommunicator):
    """Rank 0 of several workers on the fake GPU, whose others send what it sends.

    Args:
        streams: of the fake GPU.
        node_of: the node of each worker.
    """

    def __init__(self, streams, node_of):
        Communicator.__init__(self, "none")
        self.engine, self.transport, self.nccl = "torch", "Gloo", True
        self.rank, self.size = 0, len(node_of)
        self.node_of, self.nodes = node_of, len(set(node_of))
        self.local_rank, self.local_size = 0, node_of.count(0)
        self._channel, self._ranks, self._groups = "main", list(range(self.size)), {}
        self._watchdog = _NoWatchdog()
        self._streams = streams
        self._group = self._connect()

    def _connect(self):
        return self._groups.setdefault(
            (self._channel, tuple(self._ranks)), _Group(self._streams, len(self._ranks))
        )


class _Group:
    def __init__(self, streams, size):
        self._nccl = _Nccl(streams, size)

    def of(self, tensor):
        assert tensor.is_cuda, "only tensors of the GPU are exchanged here"
        return self._nccl

    def start(self, issue, *, waits):
        started = Future()
        started.set_result(issue())
        return started


class _Nccl:
    """The collectives as kernels that read, write and fill these tensors."""

    def __init__(self, streams, size):
        self._streams, self._size = streams, size
        self._stream = streams.new("NCCL's stream")

    def allreduce(self, tensor, operator):
        return self._kernel(lambda: tensor.mul_(1), tensor)

    def broadcast(self, tensor, root):
        return self._kernel(lambda: tensor.mul_(1), tensor)

    def _allgather_base(self, rows, row):
        return self._kernel(lambda: rows.view(self._size, -1).copy_(row.view(1, -1)), rows, row)

    def alltoall_base(self, received, sent, receives, sends):
        # As many bytes as there are of both, so that whoever receives nothing also takes part.
        count = min(received.numel(), sent.numel())
        return self._kernel(lambda: received.view(-1)[:count].copy_(sent.reshape(-1)[:count]), received, sent)

    def _kernel(self, work, *tensors):
        self._stream.wait_stream(self._streams.current)
        with self._streams.entered(self._stream), torch.no_grad():
            work()
        return Work(self._streams, self._stream.record_event(), tensors)


class Work:
    def __init__(self, streams, done, tensors):
        self._streams, self._done, self._kept = streams, done, tensors

    def is_completed(self):
        return True

    def wait(self):
        self._streams.current.wait_event(self._done)
        self._kept = ()


class _NoWatchdog:
    def bounded(self, *_, **__):
        return nullcontext()
