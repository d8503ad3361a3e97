"""What follows the metrics of a run, such as a tracker."""

from __future__ import annotations

from typing import Any, Protocol


class Follower(Protocol):
    """Follows the metrics of a run while they are written."""

    def logged(self, line: dict[str, Any]) -> None:
        """Take a line that has been written."""
        ...

    def saved(self) -> None:
        """Take note that a checkpoint has been written, from which on the lines so far stay."""
        ...
