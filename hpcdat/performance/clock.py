"""Wall-clock time of work that may be queued on a GPU."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from hpcdat.distributed.device import synchronize


def now(device: torch.device) -> float:
    """Wall-clock time, seconds, once all work queued on the device is done."""
    synchronize(device)
    return time.perf_counter()


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Wall-clock time of the work, seconds, including what it has queued on the device."""
    start = now(device)
    work()
    return now(device) - start
