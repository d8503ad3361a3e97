"""Requests to stop: Ctrl-C, SIGTERM, the launcher's SIGUSR2, or a file."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from types import FrameType

LAUNCHERS_SIGNAL = signal.SIGUSR2
"""How a launcher requests its workers to stop."""
SECONDS_BETWEEN_POLLS = 0.5
"""How often a watched file is checked for."""


class StopRequest:
    """Whether a stop has been requested; handles the signals from its construction to the end of the process.

    The handler only sets :attr:`requested`, which the trainer reads once per step and the workers agree on
    with the gradients. A second Ctrl-C raises KeyboardInterrupt immediately.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, LAUNCHERS_SIGNAL)

    def __init__(self) -> None:
        self.requested = False
        for number in self.SIGNALS:
            signal.signal(number, self._handle)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [LAUNCHERS_SIGNAL])

    def watch(self, file: Path) -> None:
        """Request a stop as soon as a file exists; a background thread polls for it."""

        def poll() -> None:
            while not self.requested:
                if file.exists():
                    self.requested = True
                time.sleep(SECONDS_BETWEEN_POLLS)

        threading.Thread(target=poll, name="stop file", daemon=True).start()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True


def hold_launchers_request() -> None:
    """Block SIGUSR2, which would end this process while it starts, until :class:`StopRequest` handles it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [LAUNCHERS_SIGNAL])


def installed_stop_request() -> StopRequest | None:
    """The request that handles this process's signals; None if there is none."""
    owner = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return owner if isinstance(owner, StopRequest) else None
