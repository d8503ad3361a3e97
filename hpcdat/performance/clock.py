"""Wall-clock time of work whose end a GPU would not wait for."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from hpcdat.distributed.device import synchronize


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Wall-clock time of the work in seconds, what it has queued on the device included."""
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start
