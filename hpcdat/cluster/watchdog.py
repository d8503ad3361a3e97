"""No wait without a bound: a worker that waits too long for the others says so and ends."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Watchdog:
    """Ends this process when one wait lasts longer than allowed.

    The process ends from a thread, since a collective that hangs cannot be interrupted; its
    launcher then ends the other workers.

    Args:
        seconds: longest wait allowed.
        who: this worker, for the message: ``worker 3 on node07``.
    """

    def __init__(self, seconds: float, who: str) -> None:
        self.seconds = seconds
        self.who = who
        self._wait: tuple[str, float] | None = None
        threading.Thread(target=self._look, name="watchdog", daemon=True).start()

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Bound the wait inside the block; ``what`` says what is waited for."""
        self._wait = (what, time.monotonic())
        try:
            yield
        finally:
            self._wait = None

    def _look(self) -> None:
        while True:
            time.sleep(min(1.0, self.seconds / 4))
            wait = self._wait
            if wait is not None and time.monotonic() - wait[1] > self.seconds:
                print(
                    f"hpcdat: {self.who} has waited {self.seconds:g} s for the other workers ({wait[0]}) "
                    "and gives up: one of them hangs or is unreachable. Look for the worker whose "
                    "message is missing; raise stall_timeout if the wait was rightful.",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(1)
