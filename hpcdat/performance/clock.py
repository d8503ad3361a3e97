"""Wall-clock time of work that may be queued on a GPU."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from hpcdat.distributed.device import synchronize


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Wall-clock time of the work, seconds, including what it has queued on the device."""
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start
