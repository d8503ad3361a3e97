"""No wait without a bound: a worker that waits too long for the others says so and ends."""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Watchdog:
    """Ends this process when one wait, of whichever thread, lasts longer than allowed.

    The process ends from a thread, since a collective that hangs cannot be interrupted; its
    launcher then ends the other workers.

    Args:
        seconds: longest wait allowed.
        who: this worker, for the message: ``worker 3 on node07``.
    """

    def __init__(self, seconds: float, who: str) -> None:
        self.seconds = seconds
        self.who = who
        self._waits: dict[object, tuple[str, float]] = {}
        threading.Thread(target=self._look, name="watchdog", daemon=True).start()

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Bound the wait inside the block; ``what`` says what is waited for."""
        this = object()
        self._waits[this] = (what, time.monotonic())
        try:
            yield
        finally:
            del self._waits[this]

    def _look(self) -> None:
        while True:
            time.sleep(min(1.0, self.seconds / 4))
            what, since = min(list(self._waits.values()), key=lambda wait: wait[1], default=("", math.inf))
            if time.monotonic() - since > self.seconds:
                print(
                    f"hpcdat: {self.who} has waited {self.seconds:g} s for the other workers ({what}) "
                    "and gives up: one of them hangs or is unreachable. Look for the worker whose "
                    "message is missing; raise stall_timeout if the wait was rightful.",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(1)
