"""What the user sees while waiting: a bar on a terminal, otherwise a line now and then."""

from __future__ import annotations

import os
import sys
import time
from typing import NoReturn

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 60.0

ON_TERMINAL = "HPCDAT_ON_TERMINAL"
"""Set for workers whose output a launcher passes on to a terminal."""


class Progress:
    """Progress of one phase after the other, shown by worker 0 alone.

    Args:
        shown: whether this worker shows anything.
    """

    def __init__(self, *, shown: bool) -> None:
        self.shown = shown
        self.on_terminal = sys.stderr.isatty() or os.environ.get(ON_TERMINAL) == "1"
        self._bar: tqdm[NoReturn] | None = None

    def begin(self, label: str, steps: int, done: int = 0) -> None:
        """Start a phase of so many steps, of which some may be done."""
        self._label = label
        self._steps, self._step = steps, done
        self._last_line = time.monotonic()
        if self.shown and self.on_terminal:
            self._bar = tqdm(total=steps, initial=done, desc=label, unit="step", leave=False, file=sys.stderr)

    def step(self) -> None:
        """One more step is done."""
        self._step += 1
        if self._bar is not None:
            self._bar.update()
        elif self.shown and time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            self.say(f"{self._label}: step {self._step} of {self._steps}")

    def end(self) -> None:
        """The phase is over."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def say(self, line: str) -> None:
        """Print one line, on worker 0."""
        if self.shown:
            print(line, flush=True)
