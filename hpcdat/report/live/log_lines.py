"""The log of a run's Slurm job: its last lines, and the warnings in them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

BYTES_READ = 2**16
"""Of the end of a log, which may be long."""
WARNINGS_SHOWN = 5


def end_of_log(folder: Path) -> list[str]:
    """The last lines of the newest log in the Slurm folder of a run; empty if there is none."""
    try:
        files = sorted(folder.glob("*.log"), key=lambda file: file.stat().st_mtime)
        if not files:
            return []
        with files[-1].open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - BYTES_READ))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    # A progress bar returns to the start of its line; control characters are not for a terminal.
    ends = (line.rpartition("\r")[2] for line in text.rstrip().split("\n"))
    return ["".join(c if c.isprintable() else " " for c in line).rstrip() for line in ends]


def warnings_in(lines: Sequence[str]) -> list[str]:
    """The last lines that warn."""
    return [line for line in lines if "warning:" in line.lower()][-WARNINGS_SHOWN:]
