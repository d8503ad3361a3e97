"""The wish to stop: Ctrl-C, SIGTERM or the launcher's SIGUSR2, kept until a step is done."""

from __future__ import annotations

import signal
from types import FrameType


class StopRequest:
    """Notes signals that ask for a stop; nothing else is done in the handler.

    The trainer reads :attr:`wanted` once a step and the workers agree on it with the gradients.
    A second Ctrl-C ends the process at once.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)

    def __init__(self) -> None:
        self.wanted = False

    def __enter__(self) -> StopRequest:
        self._before = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.wanted and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.wanted = True
