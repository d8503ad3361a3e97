"""Numerics that do not depend on who measures: threads, cuDNN's algorithms and precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


@contextmanager
def deterministic(device: torch.device, say: Callable[[str], None]) -> Iterator[None]:
    """Inside the block, round sums alike in every process that computes on such a device.

    On a CPU the process computes with one thread, since threads divide sums among them. On a GPU cuDNN always
    takes the same algorithm, and float32 has its full precision (no TF32). Afterwards all is as before.

    Args:
        device: where this worker computes.
        say: called with a line of text if cores are idle because of that.
    """
    if device.type == "cuda":
        cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
        before = cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32
        cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32 = False, True, False, False
        try:
            yield
        finally:
            cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32 = before
        return
    threads = torch.get_num_threads()
    if threads > 1:
        say(
            "each worker computes with one thread, so that results do not depend on the number of threads; "
            f"start {threads} times as many workers to use all cores"
        )
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
