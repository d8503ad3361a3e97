"""The most memory that a piece of work takes."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from hpcdat.errors import HpcdatError

T = TypeVar("T")

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_MOST_RESIDENT = "5"
"""Written to CLEAR: the most resident memory is that of now (proc(5))."""


class NotEnoughMemory(HpcdatError):
    """A piece of work needs more memory than there is."""


def resident() -> int:
    """Resident memory of this process, bytes."""
    return _status("VmRSS")


def most_resident() -> int:
    """The most resident memory that this process has had, bytes."""
    return _status("VmHWM")


def in_own_process(work: Callable[..., T], *arguments: Any) -> T:
    """The answer of a function that runs in a new process, where nothing has been computed before.

    Raises:
        NotEnoughMemory: the process was killed, as Linux does when memory runs out.
    """
    # Not a fork of this process: the threads of torch, MPI and Horovod would be missing in it.
    context = get_context("forkserver")
    context.set_forkserver_preload(["torch", work.__module__])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(work, *arguments).result()
        except BrokenProcessPool:
            raise NotEnoughMemory("out of memory: the process that measures memory was killed") from None


def growth_of(work: Callable[[], object]) -> int:
    """Bytes of resident memory that a piece of work takes at most, beyond those of this process before it.

    Raises:
        OSError: Linux does not let this process measure it.
    """
    CLEAR.write_text(RESET_MOST_RESIDENT)
    before = resident()
    work()
    return most_resident() - before


def _status(key: str) -> int:
    for line in STATUS.read_text().splitlines():
        if line.startswith(f"{key}:"):
            return 1024 * int(line.split()[1])
    raise OSError(f"{STATUS} of process {os.getpid()} has no {key}")
