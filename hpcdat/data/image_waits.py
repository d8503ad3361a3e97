"""Waits for images that threads or processes read."""

from __future__ import annotations

from collections.abc import Collection
from concurrent.futures import Future
from concurrent.futures import wait as wait_for_futures
from typing import Any

from hpcdat.distributed.stop_signals import installed_stop_request
from hpcdat.distributed.waiting import SECONDS_BETWEEN_CHECKS, Wait

SECONDS_TO_FINISH = 10.0
"""How long a trainer waits for images after a stop request, to end its step with a checkpoint."""


class ImageWaits:
    """The waits of one loader; the first long one is announced.

    Args:
        what: is awaited, as in "waiting for ...".
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self._announced = False

    def until_done(self, futures: Collection[Future[Any]]) -> None:
        """Wait until all are done.

        Raises:
            Stopped: a stop was requested, and they were not done in time.
        """
        wait = Wait(self.what, installed_stop_request(), grace=SECONDS_TO_FINISH, shown=not self._announced)
        while wait_for_futures(futures, SECONDS_BETWEEN_CHECKS).not_done:
            wait.check()
            self._announced = wait.announced
