"""A snapshot as text for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from hpcdat.report.durations import duration
from hpcdat.report.live.snapshot import Snapshot

SHOWN = {
    "train/cost": ("cost", ""),
    "train/learning_rate": ("learning rate", ""),
    "time/images_per_second": ("images/s", ""),
    "time/epoch_seconds": ("T", " s"),
    "time/communication_seconds": ("C", " s"),
    "time/waiting_for_images_percent": ("waiting for images", " %"),
    "test/TA_percent": ("TA, test", " %"),
    "test/RA_percent": ("RA, test", " %"),
    "validation/TA_percent": ("TA, held out", " %"),
    "validation/RA_percent": ("RA, held out", " %"),
    "gpu/memory_GiB": ("GPU memory", " GiB"),
    "gpu/utilisation_percent": ("GPU utilisation", " %"),
}
"""Curves that are shown, in this order: label and unit."""

BLOCKS = "▁▂▃▄▅▆▇█"
LETTERS = "_.-=+*%#"
"""For terminals that cannot show blocks."""


def terminal_text(snapshot: Snapshot, columns: int, *, blocks: bool = True) -> str:
    """The state of a run, its latest values with their curves, and warnings.

    Args:
        snapshot: of the run.
        columns: width of the terminal; no line is longer.
        blocks: whether the terminal can show block characters.
    """
    texts = [
        f"{snapshot.folder}: {snapshot.method}, exchange {snapshot.exchange}",
        f"workers: {snapshot.workers}" if snapshot.workers else "",
        f"{snapshot.state}: {snapshot.remark}" if snapshot.remark else snapshot.state,
        progress_text(snapshot),
    ]
    lines = [*_wrapped(texts, columns, ""), ""]
    levels = BLOCKS if blocks else LETTERS
    width = max(8, min(60, columns - 36))
    for name, (label, unit) in SHOWN.items():
        if name in snapshot.curves:
            values = [value for _, value in snapshot.curves[name]]
            value = f"{values[-1]:,.4g}{unit}"
            lines.append(f"{label:<19} {value:<14} {sparkline(values, width, levels)}")
    if not snapshot.curves:
        lines.append("no epoch is done yet")
    if snapshot.warnings:
        lines += ["", "warnings:", *_wrapped(snapshot.warnings, columns, "  ")]
    if snapshot.log:
        lines += ["", "end of the log:", *_wrapped(snapshot.log, columns, "  ")]
    return "\n".join(line[:columns].rstrip() for line in lines)


def _wrapped(texts: Sequence[str], columns: int, indent: str) -> list[str]:
    """Texts on as many lines as they need; none for an empty one."""
    return [
        line
        for text in texts
        for line in textwrap.wrap(text, columns, initial_indent=indent, subsequent_indent=indent)
    ]


def progress_text(snapshot: Snapshot) -> str:
    """How far it is, and how long it will take: ``epoch 3 of 30 done; ...``."""
    parts = [f"epoch {snapshot.epoch} of {snapshot.epochs} done"]
    if snapshot.left_seconds is not None:
        parts.append(f"{duration(snapshot.left_seconds)} of training left, without evaluations")
    parts.append(f"last change {duration(snapshot.unchanged_seconds)} ago")
    return "; ".join(parts)


def sparkline(values: Sequence[float], width: int, levels: str = BLOCKS) -> str:
    """Values as characters of growing height, the latest ones if there are more than ``width``."""
    shown = values[-width:]
    low, high = min(shown), max(shown)
    if high == low:
        return levels[0] * len(shown)
    top = len(levels) - 1
    return "".join(levels[round(top * (value - low) / (high - low))] for value in shown)
