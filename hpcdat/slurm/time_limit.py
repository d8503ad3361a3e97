"""Time limits in sbatch's notation."""

from __future__ import annotations

import re

from hpcdat.errors import shorten

SECONDS_OF_WARNING = 120
"""Time between Slurm's warning and the time limit, for a step, a checkpoint and the requeue."""
SHORTEST_TIME_LIMIT = 300
"""Seconds; a shorter limit would leave no time to train between start and warning."""


def seconds(time: str) -> float:
    """Seconds of a time limit: M[:S], H:M:S, or D-H[:M[:S]]; infinity for ``0``, which is no limit.

    Raises:
        ValueError: it is no time limit, or too short.
    """
    if not re.fullmatch(r"([0-9]+-)?[0-9]+(:[0-9]+){0,2}", time):
        raise ValueError(f"time limit {shorten(repr(time))}: expected minutes, HH:MM:SS or D-HH:MM")
    days, dash, rest = time.rpartition("-")
    numbers = [int(number) for number in rest.split(":")]
    if not dash and len(numbers) < 3:
        numbers.insert(0, 0)
    hours, minutes, remaining = (*numbers, 0, 0)[:3]
    limit = ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + remaining
    if 0 < limit < SHORTEST_TIME_LIMIT:
        raise ValueError(
            f"time limit {shorten(time)}: expected {SHORTEST_TIME_LIMIT // 60} minutes or more; a run stops "
            f"{SECONDS_OF_WARNING // 60} minutes before its limit to write a checkpoint"
        )
    return limit or float("inf")
