"""Bounded waits: a worker that waits too long for the others reports it and exits."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from hpcdat.errors import WorkerError, first_line


class Watchdog:
    """Exits this process when a wait in any thread lasts longer than allowed.

    A background thread does so, since a hanging collective cannot be interrupted; the launcher then ends the
    other workers.

    Args:
        seconds: longest wait allowed.
        who: this worker, for the message: ``worker 3 on node07``.
    """

    def __init__(self, seconds: float, who: str) -> None:
        self.seconds = seconds
        self.who = who
        self._waits: dict[object, tuple[str, float, float]] = {}
        threading.Thread(target=self._poll, name="watchdog", daemon=True).start()

    @contextmanager
    def waiting(self, what: str, *, at_least: float = 0.0) -> Iterator[None]:
        """Bound the wait inside the block.

        Args:
            what: the awaited event, for the message.
            at_least: seconds allowed for this wait even if ``seconds`` is less.
        """
        this = object()
        self._waits[this] = (what, time.monotonic(), at_least)
        try:
            yield
        finally:
            del self._waits[this]

    @contextmanager
    def bounded(
        self, what: str, lost: type[Exception], engine: str, *, at_least: float = 0.0
    ) -> Iterator[None]:
        """Bound the wait inside the block, and report the loss of other workers.

        Args:
            what: the awaited event, for the message.
            lost: the error by which the engine reports that it has lost other workers.
            engine: its name, for the message.
            at_least: as for :meth:`waiting`.

        Raises:
            WorkerError: the other workers are lost.
        """
        try:
            with self.waiting(what, at_least=at_least):
                yield
        except lost as error:
            raise WorkerError(
                f"lost the other workers ({what}): one of them has ended or cannot be reached; see its own "
                f"or its launcher's message. {engine} reports: {first_line(error)}"
            ) from None

    def _poll(self) -> None:
        while True:
            time.sleep(min(1.0, self.seconds / 4))
            for what, since, at_least in list(self._waits.values()):
                allowed = max(self.seconds, at_least)
                if time.monotonic() - since > allowed:
                    self._give_up(what, allowed)

    def _give_up(self, what: str, waited: float) -> None:
        print(
            f"hpcdat: {self.who} has waited {waited:g} s for the other workers ({what}) "
            "and gives up: one of them hangs or is unreachable. The worker without such a message is the "
            "cause; increase stall_timeout if the wait was legitimate.",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)
