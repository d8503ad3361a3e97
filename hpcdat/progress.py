"""Progress: a bar on a terminal, otherwise an occasional line."""

from __future__ import annotations

import os
import sys
import time
from typing import NoReturn

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 60.0
"""Shortest time between two progress lines when there is no terminal."""

ON_TERMINAL = "HPCDAT_ON_TERMINAL"
"""Environment variable; 1 for workers whose launcher forwards their output to a terminal."""


class Progress:
    """Progress of successive phases, printed by one worker.

    Args:
        shown: whether this worker prints.
    """

    def __init__(self, *, shown: bool) -> None:
        self.shown = shown
        self.on_terminal = sys.stderr.isatty() or os.environ.get(ON_TERMINAL) == "1"
        self._said: set[str] = set()
        self._bar: tqdm[NoReturn] | None = None

    def begin(self, label: str, steps: int, done: int = 0) -> None:
        """Start a phase.

        Args:
            label: name of the phase.
            steps: number of steps in total.
            done: number of steps done already.
        """
        self._label = label
        self._steps, self._step = steps, done
        self._last_line = time.monotonic()
        if self.shown and self.on_terminal:
            self._bar = tqdm(total=steps, initial=done, desc=label, unit="step", leave=False, file=sys.stderr)

    def step(self) -> None:
        """Count one more step."""
        self._step += 1
        if self._bar is not None:
            self._bar.update()
        elif self.shown and time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            self.say(f"{self._label}: step {self._step} of {self._steps}")

    def end(self) -> None:
        """End the phase."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def say_once(self, line: str) -> None:
        """Print a line that has not been printed before."""
        if line not in self._said:
            self._said.add(line)
            self.say(line)

    def say(self, line: str) -> None:
        """Print one line, if this worker prints."""
        if self.shown:
            print(line, flush=True)
