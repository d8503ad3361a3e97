"""The wish to stop: Ctrl-C, SIGTERM, the launcher's SIGUSR2, or a file, kept until a step is done."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from types import FrameType

SECONDS_BETWEEN_LOOKS = 0.5


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

    def heed(self, file: Path) -> None:
        """Look for a file from now on, which asks for a stop when it is there."""

        def look() -> None:
            while not self.wanted:
                if file.exists():
                    self.wanted = True
                time.sleep(SECONDS_BETWEEN_LOOKS)

        threading.Thread(target=look, name="stop file", daemon=True).start()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.wanted and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.wanted = True
