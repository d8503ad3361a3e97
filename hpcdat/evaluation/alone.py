"""One command at a time in a folder of outcomes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from hpcdat.cluster.workers import Workers
from hpcdat.lock import keep_others_out


@contextmanager
def alone_in(folder: Path, workers: Workers) -> Iterator[None]:
    """Keep other commands out of a folder inside the block; all workers enter it together.

    Args:
        folder: made if it is not there.
        workers: of this command; worker 0 holds the lock.

    Raises:
        InputError: another command works there.
    """
    with ExitStack() as held:

        def lock() -> None:
            if workers.is_first:
                held.enter_context(keep_others_out(folder))

        workers.together(f"lock {folder}", lock)
        yield
