"""Numerics that do not depend on the process: number of threads, cuDNN's algorithms, precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from hpcdat.models.float32 import without_tf32


@contextmanager
def deterministic(device: torch.device, log: Callable[[str], None]) -> Iterator[None]:
    """Inside the block, compute bit-identical results in every process on the same kind of device.

    This is needed because outcomes of batches are stored, and must not depend on which worker of which start
    measured them. On a CPU the process uses one thread, since the number of threads determines how sums are
    split. On a GPU cuDNN always uses the same algorithm, and float32 has full precision (no TF32). torch has
    only global settings for this; they are restored afterwards, also after an exception.

    Args:
        device: of this worker.
        log: called with a line of text if cores are idle as a result.
    """
    if device.type == "cuda":
        cudnn = torch.backends.cudnn
        before = cudnn.benchmark, cudnn.deterministic
        cudnn.benchmark, cudnn.deterministic = False, True
        try:
            with without_tf32():
                yield
        finally:
            cudnn.benchmark, cudnn.deterministic = before
        return
    threads = torch.get_num_threads()
    if threads > 1:
        log(
            "each worker computes with one thread, so that results do not depend on the number of threads; "
            f"start {threads} times as many workers to use all cores"
        )
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
