"""No wait without a bound: a worker that waits too long for the others says so and ends."""

from __future__ import annotations

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
        self._waits: dict[object, tuple[str, float, float]] = {}
        threading.Thread(target=self._look, name="watchdog", daemon=True).start()

    @contextmanager
    def waiting(self, what: str, *, at_least: float = 0.0) -> Iterator[None]:
        """Bound the wait inside the block.

        Args:
            what: what is waited for, for the message.
            at_least: seconds that are allowed even where ``seconds`` is less.
        """
        this = object()
        self._waits[this] = (what, time.monotonic(), at_least)
        try:
            yield
        finally:
            del self._waits[this]

    def _look(self) -> None:
        while True:
            time.sleep(min(1.0, self.seconds / 4))
            for what, since, at_least in list(self._waits.values()):
                allowed = max(self.seconds, at_least)
                if time.monotonic() - since > allowed:
                    self._give_up(what, allowed)

    def _give_up(self, what: str, waited: float) -> None:
        print(
            f"hpcdat: {self.who} has waited {waited:g} s for the other workers ({what}) "
            "and gives up: one of them hangs or is unreachable. Look for the worker whose "
            "message is missing; raise stall_timeout if the wait was rightful.",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)
