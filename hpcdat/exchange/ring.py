"""Full-precision gradient aggregation (A3) by ring all-reduce, with time and bytes."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from hpcdat.cluster.workers import Workers


class RingAllReduce:
    """Steps 4, 6 and 7 of Algorithm 1 in one collective: every worker acts as a server.

    Args:
        workers: who takes part.

    Attributes:
        seconds: time spent in exchanges since the last :meth:`reset`, waiting for the slowest
            worker included.
    """

    def __init__(self, workers: Workers) -> None:
        self.workers = workers
        self.seconds = 0.0

    def sum(self, gradients: Sequence[Tensor], riders: Tensor) -> None:
        """Replace local gradients by their sum over the workers, in place.

        The mean over the samples of (A3) comes from a loss that was divided by the size of the
        global batch: with equal shares that is 1/M sum_i g_i, and it stays the mean over samples
        where the shares of a short batch are unequal.

        Args:
            gradients: one float32 tensor a parameter, the same order on all workers.
            riders: a few float32 numbers that are summed in the same collective, such as the
                loss and the wish to stop.
        """
        _finish_computing(riders.device)
        start = time.perf_counter()
        self.workers.sum([*gradients, riders], "gradients")
        _finish_computing(riders.device)
        self.seconds += time.perf_counter() - start

    def reset(self) -> float:
        """The seconds since the last reset, which is now."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds

    def megabytes(self, gradients: Sequence[Tensor]) -> float:
        """MiB that all workers together send in one iteration.

        A ring all-reduce sends 2 (M - 1) / M of the gradient from each of M workers. Computed,
        not measured.
        """
        size = sum(g.numel() * g.element_size() for g in gradients)
        return 2 * (self.workers.size - 1) * size / 2**20


def _finish_computing(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
