"""The pipeline of exchanges: their order, closing it early, and errors of exchanges."""

import threading
import time

import pytest
import torch

from hpcdat.distributed.communicator import Pending
from hpcdat.distributed.loopback import loopback
from hpcdat.exchange.pipeline import IN_FLIGHT, Pipeline


class Held(Pending):
    """A collective that completes when it is released."""

    def __init__(self, *, released=False):
        self.waiting, self.released = threading.Event(), threading.Event()
        if released:
            self.released.set()

    def wait(self):
        self.waiting.set()
        assert self.released.wait(10)

    def ready(self):
        return self.released.is_set()

    def wait_or(self, other):
        self.waiting.set()
        while not self.ready() and not other():
            time.sleep(0.001)


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
    pipeline, pending = Pipeline(), Held()
    (thread,) = set(threading.enumerate()) - before
    pipeline.submit(lambda: exchange(pending), print)
    assert pending.waiting.wait(10)
    for _ in range(count - 1):
        pipeline.submit(lambda: exchange(pending), print)
    pipeline.close()
    pending.released.set()
    thread.join(10)
    assert not thread.is_alive() and errors == []


def test_an_error_is_raised_once_by_wait():
    pipeline, pending, sums = Pipeline(), Held(released=True), []

    def failing():
        yield pending
        raise ValueError("no sum")

    def refuse(total):
        raise RuntimeError("no room")

    for begin, deliver, message in (
        (failing, sums.append, "no sum"),
        (lambda: exchange(pending), refuse, "no room"),
    ):
        pipeline.submit(begin, deliver)
        with pytest.raises((ValueError, RuntimeError), match=message):
            pipeline.wait()
    pipeline.submit(lambda: exchange(pending), sums.append)
    pipeline.wait()
    assert sums == ["sum"]
    pipeline.close()


def test_a_worker_waits_for_any_of_its_exchanges_not_only_for_the_oldest_collective():
    """Worker 1 gets the sum of A from worker 0 before it starts B, whose sum worker 0 waits for already."""
    ranks, across = loopback(2, timeout=5), Held()
    pipelines, sums = [Pipeline(), Pipeline()], []

    def first(workers):
        yield workers.iall_reduce([torch.ones(1)], "A: in the node")
        if workers.is_rank0:
            yield across
        return (yield workers.ibroadcast(torch.ones(1), "A: to the node")).item()

    def second(workers):
        return (yield workers.iall_reduce([torch.ones(1)], "B: in the node"))[0].item()

    pipelines[0].submit(lambda: first(ranks[0]), sums.append)
    pipelines[0].submit(lambda: second(ranks[0]), sums.append)
    pipelines[1].submit(lambda: first(ranks[1]), sums.append)
    # Worker 0 has started B, and worker 1 waits for the end of A.
    time.sleep(0.2)
    across.released.set()
    pipelines[1].submit(lambda: second(ranks[1]), sums.append)
    for pipeline in pipelines:
        pipeline.wait()
        pipeline.close()
    assert sorted(sums) == [1, 1, 2, 2]


@pytest.mark.parametrize("in_flight", [1, 2, IN_FLIGHT])
def test_an_exchange_begins_after_the_one_whose_channel_it_uses_has_ended(in_flight):
    """Though the others, which began later, have ended before that."""
    pipeline, first, begun = Pipeline(in_flight), Held(), []

    def begin(number):
        begun.append(number)
        return exchange(Held(released=True) if number else first)

    for number in range(in_flight + 2):
        pipeline.submit(lambda number=number: begin(number), lambda total: None)
    deadline = time.monotonic() + 10
    while len(begun) < in_flight and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.1)
    assert begun == list(range(in_flight))
    first.released.set()
    pipeline.wait()
    assert begun == list(range(in_flight + 2))
    pipeline.close()
