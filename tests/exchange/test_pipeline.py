"""The engine of the exchange: closing it early, and errors of exchanges."""

import threading

import pytest

from hpcdat.distributed.communicator import Pending
from hpcdat.exchange.pipeline import IN_FLIGHT, Engine


class Held(Pending):
    """A collective that completes when it is released."""

    def __init__(self, *, released=False):
        self.waiting, self.released = threading.Event(), threading.Event()
        if released:
            self.released.set()

    def wait(self):
        self.waiting.set()
        assert self.released.wait(10)


def exchange(pending):
    """An exchange of one collective."""
    yield pending
    return "sum"


@pytest.mark.parametrize("count", [1, 2, IN_FLIGHT + 1])
def test_closing_with_exchanges_in_progress_ends_the_thread_without_an_error(count, monkeypatch):
    """Of two the second is started, and the request to close read, while it is in progress."""
    errors = []
    monkeypatch.setattr(threading, "excepthook", errors.append)
    before = set(threading.enumerate())
    engine, pending = Engine(), Held()
    (thread,) = set(threading.enumerate()) - before
    engine.submit(lambda: exchange(pending), print)
    assert pending.waiting.wait(10)
    for _ in range(count - 1):
        engine.submit(lambda: exchange(pending), print)
    engine.close()
    pending.released.set()
    thread.join(10)
    assert not thread.is_alive() and errors == []


def test_an_error_is_raised_once_by_wait():
    engine, pending, sums = Engine(), Held(released=True), []

    def failing():
        yield pending
        raise ValueError("no sum")

    def refuse(total):
        raise RuntimeError("no room")

    for begin, deliver, message in (
        (failing, sums.append, "no sum"),
        (lambda: exchange(pending), refuse, "no room"),
    ):
        engine.submit(begin, deliver)
        with pytest.raises((ValueError, RuntimeError), match=message):
            engine.wait()
    engine.submit(lambda: exchange(pending), sums.append)
    engine.wait()
    assert sums == ["sum"]
    engine.close()
