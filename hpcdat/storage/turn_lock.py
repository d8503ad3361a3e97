"""Let processes, of several nodes too, do the same work one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

SECONDS_BETWEEN_CHECKS = 0.25
"""How often a process that waits for its turn checks whether to give up."""


@contextmanager
def taking_turns(file: Path, check: Callable[[], None]) -> Iterator[None]:
    """Hold a lock, for which other processes wait that want it.

    Whoever comes second should look whether the work has been done.

    Args:
        file: of the lock; stays.
        check: called while waiting; raises an error to give up.

    Raises:
        OSError: the file cannot be written.
    """
    lock = FileLock(file)
    while not lock.is_locked:
        try:
            lock.acquire(timeout=SECONDS_BETWEEN_CHECKS)
        except Timeout:
            check()
    try:
        yield
    finally:
        lock.release()
