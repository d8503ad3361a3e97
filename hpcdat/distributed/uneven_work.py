"""Work whose duration differs between workers, with failures and stop requests shared while it runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from typing import TypeVar

import torch
from torch import Tensor

from hpcdat.distributed.communicator import Communicator, Pending
from hpcdat.distributed.stop_signals import StopRequest
from hpcdat.errors import HpcdatError, Stopped

T = TypeVar("T")

SECONDS_BETWEEN_ROUNDS = 0.25
"""Pause between two status all-reduces."""
SECONDS_BETWEEN_POLLS = 0.25
"""How often work that waits for its threads polls."""


class _Aborted(Exception):
    """Another worker failed, or a stop was requested."""


class _StatusRounds:
    """A periodic all-reduce of how many workers have finished, failed, or been asked to stop.

    The stall timeout thus bounds the time between two polls of a worker, not the difference between their
    shares.
    """

    def __init__(self, workers: Communicator, stop: StopRequest | None) -> None:
        self.workers, self.stop = workers, stop
        self.finished = self.failed = False
        self.all_finished = self.any_failed = self.stopping = False
        self._next = time.monotonic()
        self._flags: Tensor | None = None
        self._pending: Pending | None = None

    def poll(self) -> None:
        """Advance the current round without blocking.

        Raises:
            _Aborted: another worker failed, or a stop was requested.
        """
        if self._pending is None:
            if time.monotonic() < self._next:
                return
            self._begin()
        if self._pending is not None and self._pending.ready():
            self._end()
        if self.any_failed or self.stopping:
            raise _Aborted

    def wait(self, *, failed: bool) -> None:
        """Report this worker's share as done and wait for the others, a failure or a stop request."""
        self.finished, self.failed = True, failed
        while not (self.all_finished or self.any_failed or self.stopping):
            if self._pending is None:
                if self.workers.size > 1:
                    time.sleep(max(0.0, self._next - time.monotonic()))
                self._begin()
            self._end()

    def _begin(self) -> None:
        requested = self.stop is not None and self.stop.requested
        self._flags = torch.tensor([self.finished, self.failed, requested], dtype=torch.int64)
        self._pending = self.workers.iall_reduce([self._flags], "whether all have done their share")

    def _end(self) -> None:
        pending, self._pending = self._pending, None
        assert pending is not None and self._flags is not None
        pending.wait()
        finished, failed, stopping = self._flags.tolist()
        self.all_finished = finished == self.workers.size
        self.any_failed, self.stopping = failed > 0, stopping > 0
        self._next = time.monotonic() + SECONDS_BETWEEN_ROUNDS


def run_unevenly(
    workers: Communicator, what: str, work: Callable[[Callable[[], None]], T], stop: StopRequest | None
) -> T:
    """Do a share of some work on each worker, however long it takes the others.

    All workers call this together. A failure or a stop request on one worker ends the work on all, at their
    next poll.

    Args:
        workers: the workers that share the work.
        what: the work, as in "cannot ...".
        work: receives a function ``poll``, which it calls at least once in every stall timeout; ``poll``
            aborts the work if another worker failed or a stop was requested. The work calls no collective.
        stop: stop request, on any of the workers; None to ignore requests until the work is done.

    Returns:
        The result of this worker's share.

    Raises:
        Stopped: a stop was requested; on all workers.
        InputError, WorkerError: as :meth:`Communicator.on_all_ranks`.
    """
    rounds = _StatusRounds(workers, stop)
    results: list[T] = []
    failure: Exception | None = None
    try:
        results.append(work(rounds.poll))
    except _Aborted:
        pass
    except Stopped as error:
        # The work noticed the request itself; the others learn of it in the next round.
        failure = None if stop is not None and stop.requested else error
    except (OSError, RuntimeError, ValueError, HpcdatError) as error:
        failure = error
    rounds.wait(failed=failure is not None)

    def conclude() -> list[T]:
        if failure is not None:
            raise failure
        return results

    if rounds.stopping and not rounds.any_failed:
        raise Stopped(f"stopped; rerun the same command to {what}", everywhere=True)
    (result,) = workers.on_all_ranks(what, conclude)
    return result


def results_in_order(futures: Iterable[Future[T]], poll: Callable[[], None]) -> Iterator[T]:
    """The results of threads in order, with a poll before each, and while it is awaited.

    Args:
        futures: of the threads.
        poll: of :func:`run_unevenly`.
    """
    for future in futures:
        poll()
        while not (future.done() or wait([future], SECONDS_BETWEEN_POLLS).done):
            poll()
        yield future.result()
