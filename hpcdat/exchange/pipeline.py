"""Runs exchanges concurrently with the computation: one thread, several buckets in flight."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

from hpcdat.distributed.communicator import Pending
from hpcdat.distributed.device import same_gpu

IN_FLIGHT = 4
"""Largest number of exchanges in progress at once, unless fewer are asked for."""

Deliver = Callable[[Any], object]
Steps = Generator[Pending, Any, Any]
"""An exchange: yields started collectives and receives their results."""


@dataclass(eq=False)
class _Running:
    number: int
    steps: Steps
    pending: Pending
    deliver: Deliver


class Pipeline:
    """Starts exchanges in order and runs each one's collectives.

    While one exchange waits for the network, the next one computes its codes. Workers that differ in speed
    also differ in the order of the collectives of these exchanges. So exchange k begins only after exchange
    k - n has ended, for n in flight, and the two can use the same channel.

    Args:
        in_flight: largest number of exchanges in progress at once.

    Attributes:
        busy_seconds: time during which any exchange was in progress, since the caller last reset it.
    """

    def __init__(self, in_flight: int = IN_FLIGHT) -> None:
        self.in_flight = in_flight
        self.busy_seconds = 0.0
        self._new: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._done = threading.Semaphore(0)
        self._submitted = self._started = 0
        self._since = 0.0
        self._error: BaseException | None = None
        self._use_gpu = same_gpu()
        threading.Thread(target=self._work, name="exchange", daemon=True).start()

    def submit(self, begin: Callable[[], Steps], deliver: Deliver) -> None:
        """Start an exchange as soon as the one that was submitted ``in_flight`` before it has ended.

        Args:
            begin: returns the generator of a protocol; called in the pipeline's thread.
            deliver: receives its result, in the pipeline's thread.
        """
        self._submitted += 1
        self._new.put((begin, deliver))

    def wait(self) -> None:
        """Wait for all submitted exchanges.

        Raises:
            Exception: the first error of an exchange; exchanges submitted after it were not started.
        """
        for _ in range(self._submitted):
            self._done.acquire()
        self._submitted = 0
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def close(self) -> None:
        """End the thread without waiting for exchanges in progress; nothing can be submitted afterwards."""
        self._new.put(None)

    def _work(self) -> None:
        self._use_gpu()
        running: deque[_Running] = deque()
        while True:
            if not running or self._can_start(running):
                new = self._new.get()
                if new is None:
                    return
                begin, deliver = new
                if not running:
                    self._since = time.perf_counter()
                self._start(begin, deliver, running)
            else:
                self._advance(running)

    def _can_start(self, running: deque[_Running]) -> bool:
        oldest = min((one.number for one in running), default=self._started)
        return self._started - oldest < self.in_flight and not self._new.empty()

    def _start(self, begin: Callable[[], Steps], deliver: Deliver, running: deque[_Running]) -> None:
        steps, number = None if self._error else begin(), self._started
        self._started += 1
        self._resume(number, steps, None, deliver, running)

    def _advance(self, running: deque[_Running]) -> None:
        """Wait until a collective is complete, and resume its exchange; or until another exchange can start.

        To wait for the oldest collective only could be a deadlock: in exchange A worker 0 may have to start
        the collective that worker 1 waits for, while it waits itself for one of exchange B, which worker 1,
        whose gradients came later, has not started.
        """

        def other() -> bool:
            return self._can_start(running) or any(one.pending.ready() for one in running)

        exchange = running[0]
        try:
            exchange.pending.wait_or(other)
            exchange = next((one for one in running if one.pending.ready()), exchange)
            if not exchange.pending.ready():
                return
            running.remove(exchange)
            result = exchange.pending.wait()
        except BaseException as error:
            if exchange in running:
                running.remove(exchange)
            self._fail(error, running)
            return
        self._resume(exchange.number, exchange.steps, result, exchange.deliver, running)

    def _resume(
        self, number: int, steps: Steps | None, value: Any, deliver: Deliver, running: deque[_Running]
    ) -> None:
        if steps is None:
            self._end_one(running)
            return
        try:
            running.append(_Running(number, steps, steps.send(value), deliver))
        except StopIteration as end:
            try:
                deliver(end.value)
            except BaseException as error:
                self._error = error
            self._end_one(running)
        except BaseException as error:
            self._fail(error, running)

    def _fail(self, error: BaseException, running: deque[_Running]) -> None:
        self._error = self._error or error
        self._end_one(running)

    def _end_one(self, running: deque[_Running]) -> None:
        if not running:
            self.busy_seconds += time.perf_counter() - self._since
        self._done.release()
