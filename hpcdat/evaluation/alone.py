"""One command at a time in a folder of outcomes."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from hpcdat.cluster.workers import Workers
from hpcdat.errors import InputError


@contextmanager
def alone_in(folder: Path, workers: Workers) -> Iterator[None]:
    """Keep other commands out of a folder inside the block; all workers enter it together.

    The lock is the operating system's, which goes with the process that held it, however it ended.

    Args:
        folder: made if it is not there.
        workers: of this command; worker 0 holds the lock.

    Raises:
        InputError: another command works there.
    """
    with ExitStack() as held:

        def lock() -> None:
            if not workers.is_first:
                return
            folder.mkdir(parents=True, exist_ok=True)
            file = held.enter_context((folder / ".lock").open("a"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(
                    f"another command is at work in {folder}: wait for its end, then go on from there"
                ) from None
            except OSError:
                # A file system without locks keeps nobody out.
                pass

        workers.together(f"lock {folder}", lock)
        yield
