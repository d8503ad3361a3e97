"""Installation steps: commands with progress, a log and advice on failure."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

PROGRESS = (
    (re.compile(r"\[ *(\d+%)\] Building \w+ object \S*/(\S+)\.o\b"), "{} compiled, now {}"),
    (re.compile(r"\[ *(\d+%)\] Linking"), "{} compiled, now linking"),
    (re.compile(r"Downloading (\S+?)-(\d\S*?)-\S+ \(([^)]+)\)"), "downloading {} {} ({})"),
    (re.compile(r"(?:Collecting|Processing|Using cached) (\S+)"), "collecting {}"),
    (re.compile(r"Installing collected packages: (.{,40})"), "installing {} ..."),
)
"""Lines of pip and make that show progress, and what is said of them."""


class InstallError(Exception):
    """A step cannot be done; the message says what is missing and how to get it."""


class Steps:
    """Runs steps in order, with their output in one log file.

    Args:
        log: file for the full output of every command.
        total: number of steps, for the ``[2/5]`` in front of each title.
    """

    SECONDS_BETWEEN_LINES = 20.0

    def __init__(self, log: Path, total: int) -> None:
        self.log = log
        self.total = total
        self.done = 0

    def begin(self, title: str) -> None:
        """Announce the next step."""
        self.done += 1
        print(f"[{self.done}/{self.total}] {title}", flush=True)

    def run(
        self,
        command: Sequence[str],
        *,
        help_on_failure: str,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        """Run a command to its end, printing from time to time how far it is.

        Raises:
            InstallError: the command failed; the message holds the end of its output and
                ``help_on_failure``.
        """
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            log.write(f"\n$ {' '.join(command)}\n".encode())
            log.flush()
            began, finished = log.tell(), threading.Event()
            pulse = threading.Thread(target=self._pulse, args=(began, finished), daemon=True)
            pulse.start()
            try:
                code = subprocess.run(command, stdout=log, stderr=log, env=env, cwd=cwd).returncode
            finally:
                finished.set()
                pulse.join()
        if code != 0:
            raise InstallError(
                f"this command failed with exit code {code}:\n  {' '.join(command)}\n"
                f"the end of its output (in full in {self.log}):\n{self._tail(began, 25)}\n{help_on_failure}"
            )

    def _pulse(self, began: int, finished: threading.Event) -> None:
        start = time.monotonic()
        on_terminal = sys.stdout.isatty()
        progress = ""
        while not finished.wait(1.0 if on_terminal else self.SECONDS_BETWEEN_LINES):
            progress = progress_in(self._tail(began)) or progress
            line = f"{int(time.monotonic() - start)} s  {progress}".rstrip()
            if on_terminal:
                print(f"\r      {line:<78.78}", end="", flush=True)
            else:
                print(f"      {line}", flush=True)
        if on_terminal:
            print("\r" + " " * 90 + "\r", end="", flush=True)

    def _tail(self, began: int, lines: int = 200) -> str:
        """The last lines of a command's output, which began at this position of the log."""
        with self.log.open("rb") as log:
            log.seek(0, 2)
            log.seek(max(began, log.tell() - 16384))
            text = log.read().decode(errors="replace")
        return "\n".join(text.rstrip().splitlines()[-lines:])


def progress_in(output: str) -> str:
    """The last sign of progress in the output of pip and make, in words; empty if there is none."""
    for line in reversed(output.splitlines()):
        for pattern, words in PROGRESS:
            if found := pattern.search(line):
                return words.format(*found.groups())
    return ""
