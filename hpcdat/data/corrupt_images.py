"""Images that cannot be read: they end the run, or are skipped and counted."""

from __future__ import annotations

import sys
from typing import Literal

from hpcdat.data.images import DataError
from hpcdat.data.sampler import Indices

HINT = "(data.corrupt: skip leaves such images out)"
"""What an error about images that cannot be read ends with."""


class Unreadable:
    """The images that a loader cannot read.

    Args:
        policy: the job's ``data.corrupt``.
    """

    def __init__(self, policy: Literal["stop", "skip"]) -> None:
        self.policy = policy
        self._found: set[int] = set()

    def add(self, index: int, complaint: str) -> None:
        """Add an image; it is reported once.

        Args:
            index: its position in the list of images.
            complaint: names file and reason.

        Raises:
            DataError: the job asks to stop.
        """
        if self.policy == "stop":
            raise DataError(f"{complaint} {HINT}")
        if index not in self._found:
            self._found.add(index)
            print(f"hpcdat: {complaint}; it is left out", file=sys.stderr, flush=True)

    def without(self, indices: Indices) -> Indices:
        """Those that are not known to be unreadable."""
        if not self._found:
            return indices
        return indices[[int(i) not in self._found for i in indices]] if len(indices) else indices


def complaint_about(file: str, reason: object) -> str:
    """File and reason in one line."""
    return f"{file}: cannot be read as an image: {reason}"
