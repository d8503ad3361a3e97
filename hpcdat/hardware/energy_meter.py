"""Energy from a counter that only grows."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

MOST_WATTS = 1000.0
"""No processor and no memory with one counter takes more: it bounds how fast a counter wraps."""
CLOCK_ERROR = 1.0
"""Seconds by which the times of two readings may be off."""


class EnergyMeter:
    """The energy between two readings of a counter, which may wrap or disappear.

    Args:
        read: the counter; None if it cannot be read.
        joules: of one unit of the counter.
        wraps_at: largest value of the counter, after which it starts again at 0; None if it does not.
        clock: seconds.
    """

    def __init__(
        self,
        read: Callable[[], int | None],
        joules: float,
        wraps_at: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read, self._unit, self._wraps_at, self._clock = read, joules, wraps_at, clock
        self.begin()

    def begin(self) -> None:
        """Start measuring."""
        self._value, self._when = self._read(), self._clock()
        self._units: int | None = 0

    def sample(self) -> None:
        """Read the counter, so that it does not wrap twice between two readings."""
        before, then = self._value, self._when
        self._value, self._when = self._read(), self._clock()
        if before is None or self._value is None or self._units is None:
            self._units = None
            return
        units = self._value - before
        if self._wraps_at is not None:
            units %= self._wraps_at
            most = MOST_WATTS * (self._when - then + CLOCK_ERROR) / self._unit
            # It may have wrapped more than once, or was set back.
            if most > self._wraps_at or units > most:
                units = -1
        self._units = self._units + units if units >= 0 else None

    def take(self) -> float | None:
        """Joules since :meth:`begin` or the last call; None if they are not known."""
        self.sample()
        units, self._units = self._units, 0
        return None if units is None else units * self._unit


def total(parts: Sequence[float | None]) -> float | None:
    """The sum of some energies; None if one of them is not known, or if there is none."""
    known = [part for part in parts if part is not None]
    return sum(known) if known and len(known) == len(parts) else None
