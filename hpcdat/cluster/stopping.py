"""The wish to stop: Ctrl-C, SIGTERM or the launcher's SIGUSR2, kept until a step is done."""

from __future__ import annotations

import signal
from types import FrameType


class StopRequest:
    """Notes the signals that ask for a stop, from its making to the end of the process.

    Nothing else is done in the handler: the trainer reads :attr:`wanted` once a step and the
    workers agree on it with the gradients. A second Ctrl-C raises KeyboardInterrupt at once.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)

    def __init__(self) -> None:
        self.wanted = False
        for number in self.SIGNALS:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.wanted and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.wanted = True
