"""What a tracker is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

Setting = bool | int | float | str


class Point(NamedTuple):
    """Values of some curves at the end of an epoch.

    Attributes:
        epoch: epochs done, the x-axis.
        values: by the name of the curve, see :mod:`hpcdat.tracking.curves`.
    """

    epoch: int
    values: dict[str, float]


@dataclass(frozen=True)
class TrackedRun:
    """The run that a tracker records.

    Attributes:
        folder: of the run.
        id: the same in all starts of the run, and no other run's.
        settings: of its job, by dotted name.
    """

    folder: Path
    id: str
    settings: Mapping[str, Setting]


class Tracker(Protocol):
    """Records the curves of one run. A thread of its own makes all calls, so they may take time and fail."""

    def begin(self, points: Sequence[Point]) -> None:
        """Open the record of the run, and make it hold these points, each once.

        Args:
            points: all of the run so far. Earlier starts have recorded some of them, and perhaps later ones.
        """
        ...

    def add(self, point: Point) -> None:
        """Record a further point."""
        ...

    def summarise(self, epoch: int, results: Mapping[str, float]) -> None:
        """Record the results of the run, by name, in place of earlier ones."""
        ...

    def close(self, *, finished: bool) -> None:
        """Write what is left and close the record.

        Args:
            finished: whether the run has ended; otherwise it may resume.
        """
        ...
