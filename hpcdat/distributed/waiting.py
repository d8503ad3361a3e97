"""Waits that say what they wait for, notice a stop request and end after a time."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from hpcdat.distributed.stop_signals import StopRequest
from hpcdat.errors import Stopped, WorkerError

T = TypeVar("T")

SECONDS_UNTIL_NOTICE = 10.0
"""How long a wait lasts before it is announced."""
SECONDS_BETWEEN_CHECKS = 0.2
"""How often a wait checks for a stop request."""
SECONDS_TO_CONNECT = 120.0
"""How long workers may take to connect, even if the stall timeout is shorter: some may start late."""
SHORTEST_PAUSE, LONGEST_PAUSE = 20e-6, 1e-3
"""Limits of the pause between polls of a pending collective, which is an eighth of the time waited so far."""


class Wait:
    """One wait, whose loop calls :meth:`check` several times a second.

    Args:
        what: what is awaited, as in "waiting for ..."; may be replaced during the wait.
        advice: what to do if it does not come.
        stop: request to stop; None if the wait cannot be stopped.
        longest: seconds after which the wait ends with an error; None for no limit.
        grace: seconds for which the wait continues after a stop request.
        shown: whether to announce a long wait.
        notice: seconds before it is announced.
    """

    def __init__(
        self,
        what: str,
        stop: StopRequest | None,
        *,
        advice: str = "",
        longest: float | None = None,
        grace: float = 0.0,
        shown: bool = True,
        notice: float = SECONDS_UNTIL_NOTICE,
    ) -> None:
        self.what, self.stop, self.longest, self.grace = what, stop, longest, grace
        self.advice = f"; {advice}" if advice else ""
        self.announced, self.notice = not shown, notice
        self._began = time.monotonic()
        self._stopping: float | None = None

    def check(self) -> None:
        """Announce a long wait, and end one that was stopped or lasted too long.

        Raises:
            Stopped: a stop was requested.
            WorkerError: the wait lasted too long.
        """
        now = time.monotonic()
        waited = now - self._began
        if self.stop is not None and self.stop.requested:
            self._stopping = now if self._stopping is None else self._stopping
            if now - self._stopping >= self.grace:
                raise Stopped(f"stopped while waiting for {self.what}; the same command resumes")
        if self.longest is not None and waited > self.longest:
            raise WorkerError(f"gave up after {waited:.0f} s of waiting for {self.what}{self.advice}")
        if not self.announced and waited >= self.notice:
            self.announced = True
            print(f"hpcdat: waiting for {self.what}{self.advice}", file=sys.stderr, flush=True)


def wait_in_thread(work: Callable[[], T], wait: Wait) -> T:
    """Call a function that cannot be interrupted, in a thread, and wait for it.

    If the wait ends before the function returns, the thread is abandoned.

    Args:
        work: is called once.
        wait: for its result.

    Returns:
        The result of ``work``; what it raises is raised here.

    Raises:
        Stopped, WorkerError: as :meth:`Wait.check`.
    """
    results: list[T] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run, name=f"waiting for {wait.what}", daemon=True)
    thread.start()
    while True:
        thread.join(SECONDS_BETWEEN_CHECKS)
        if not thread.is_alive():
            break
        wait.check()
    if failures:
        raise failures[0]
    return results[0]


def poll(ready: Callable[[], bool]) -> None:
    """Wait until ``ready()``, with pauses.

    The wait of a transport itself may poll without pausing, or keep signals from being handled; it would take
    a core, and the GIL, from the computation that the exchange overlaps.
    """
    start = time.monotonic()
    while not ready():
        waited = time.monotonic() - start
        time.sleep(min(max(SHORTEST_PAUSE, waited / 8), LONGEST_PAUSE))


@contextmanager
def announcing(task: str, *, shown: bool = True) -> Iterator[None]:
    """Report what is being done inside the block, if it takes long.

    Args:
        task: as in "still working after 10 s: ...".
        shown: whether to report it.
    """
    line = f"hpcdat: still working after {SECONDS_UNTIL_NOTICE:g} s: {task}"
    timer = threading.Timer(SECONDS_UNTIL_NOTICE, print, (line,), {"file": sys.stderr, "flush": True})
    timer.daemon = True
    if shown:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()
