"""Work that takes the workers unequally long, and in which they still hear of each other."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from hpcdat.distributed.communicator import Communicator, Pending
from hpcdat.distributed.stop_signals import StopRequest
from hpcdat.errors import HpcdatError, Stopped

T = TypeVar("T")

SECONDS_BETWEEN_ROUNDS = 0.25


class _BrokenOff(Exception):
    """Another worker failed, or somebody wants to stop."""


class _Rounds:
    """A small sum over all workers, again and again: how many have finished, failed, or want to stop.

    The stall timeout thus bounds the time between two looks of a worker, not the differences between
    their shares.
    """

    def __init__(self, workers: Communicator, stop: StopRequest | None) -> None:
        self.workers, self.stop = workers, stop
        self.finished = self.failed = False
        self.all_finished = self.any_failed = self.stopping = False
        self._next = time.monotonic()
        self._flags: Tensor | None = None
        self._pending: Pending | None = None

    def look(self) -> None:
        """Take part in the round that is due; nobody waits here."""
        if self._pending is None:
            if time.monotonic() < self._next:
                return
            self._begin()
        if self._pending is not None and self._pending.ready():
            self._end()
        if self.any_failed or self.stopping:
            raise _BrokenOff

    def wait(self, *, failed: bool) -> None:
        """This worker's share is done; wait until all are, or one failed or wants to stop."""
        self.finished, self.failed = True, failed
        while not (self.all_finished or self.any_failed or self.stopping):
            if self._pending is None:
                if self.workers.size > 1:
                    time.sleep(max(0.0, self._next - time.monotonic()))
                self._begin()
            self._end()

    def _begin(self) -> None:
        wanted = self.stop is not None and self.stop.wanted
        self._flags = torch.tensor([self.finished, self.failed, wanted], dtype=torch.int64)
        self._pending = self.workers.iall_reduce([self._flags], "whether all have done their share")

    def _end(self) -> None:
        pending, self._pending = self._pending, None
        assert pending is not None and self._flags is not None
        pending.wait()
        finished, failed, stopping = self._flags.tolist()
        self.all_finished = finished == self.workers.size
        self.any_failed, self.stopping = failed > 0, stopping > 0
        self._next = time.monotonic() + SECONDS_BETWEEN_ROUNDS


def apart(
    workers: Communicator, what: str, work: Callable[[Callable[[], None]], T], stop: StopRequest | None
) -> T:
    """Do a share of some work on each worker, however long it takes the others.

    All workers call this together. A failure or a wish to stop on one ends it on all, within the time
    from one look to the next.

    Args:
        workers: who work.
        what: the work, as in "cannot ...".
        work: receives a function that it calls often, at least once in every stall timeout: it looks
            after the others, and breaks the work off when there is a reason. Nothing else in it may be
            collective.
        stop: the user's wish to stop, on any of the workers; None where it has to wait for the end.

    Returns:
        What came of this worker's share.

    Raises:
        Stopped: on all workers; somebody wants to stop.
        InputError, WorkerError: as :meth:`Communicator.on_all_ranks`.
    """
    rounds = _Rounds(workers, stop)
    results: list[T] = []
    failure = None
    try:
        results.append(work(rounds.look))
    except _BrokenOff:
        pass
    except (OSError, RuntimeError, ValueError, HpcdatError) as error:
        failure = error
    rounds.wait(failed=failure is not None)

    def conclude() -> list[T]:
        if failure is not None:
            raise failure
        return results

    if rounds.stopping and not rounds.any_failed:
        raise Stopped(f"stopped; the same command goes on to {what}", everywhere=True)
    (result,) = workers.on_all_ranks(what, conclude)
    return result
