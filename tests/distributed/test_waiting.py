"""Waits say what they wait for, hear a request to stop, and end."""

import signal
import threading
from types import SimpleNamespace

import pytest

from hpcdat.distributed import waiting
from hpcdat.distributed.loopback import loopback, run_threads
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.distributed.stop_signals import StopRequest, installed_stop_request
from hpcdat.distributed.uneven_work import run_unevenly
from hpcdat.distributed.waiting import Wait, announcing, wait_in_thread
from hpcdat.errors import Stopped, WorkerError


class Stop:
    def __init__(self, requested=True):
        self.requested = requested


@pytest.fixture
def clock(monkeypatch):
    """The time, which the test sets."""

    class Clock:
        now = 0.0

    monkeypatch.setattr(waiting, "time", SimpleNamespace(monotonic=lambda: Clock.now))
    return Clock


def test_a_long_wait_is_announced_once_and_ends(clock, capsys):
    wait = Wait("the tide", None, longest=60)
    wait.check()
    clock.now = 9.9
    wait.check()
    assert capsys.readouterr().err == ""
    for now in (10.0, 11.0, 60.0):
        clock.now = now
        wait.check()
    assert capsys.readouterr().err == "hpcdat: waiting for the tide\n"
    clock.now = 60.5
    with pytest.raises(WorkerError, match="gave up after 60 s of waiting for the tide"):
        wait.check()


def test_a_wait_goes_on_after_a_stop_request_for_its_grace_only(clock, capsys):
    stop = Stop(requested=False)
    wait = Wait("the tide", stop, grace=5, shown=False)
    clock.now = 100.0
    wait.check()
    stop.requested = True
    for now in (100.1, 105.0):
        clock.now = now
        wait.check()
    clock.now = 105.2
    with pytest.raises(Stopped, match="stopped while waiting for the tide; the same command resumes"):
        wait.check()
    assert capsys.readouterr().err == ""


def test_what_cannot_be_interrupted_is_abandoned_on_a_stop_request():
    assert wait_in_thread(lambda: 7, Wait("seven", None)) == 7

    def fail():
        raise OSError("broken")

    with pytest.raises(OSError, match="broken"):
        wait_in_thread(fail, Wait("an error", None))
    forever = threading.Event()
    with pytest.raises(Stopped):
        wait_in_thread(forever.wait, Wait("ever", Stop()))
    with pytest.raises(WorkerError):
        wait_in_thread(forever.wait, Wait("ever", None, longest=0.0))
    forever.set()


def test_slow_work_is_announced_while_it_lasts(monkeypatch, capfd):
    monkeypatch.setattr(waiting, "SECONDS_UNTIL_NOTICE", 0.0)
    done = threading.Event()

    def slow():
        # Until the notice is there.
        while "find the images" not in "".join(seen):
            seen.append(capfd.readouterr().err)
        done.set()

    seen = []
    SingleProcess().on_all_ranks("find the images", slow)
    assert done.is_set() and "".join(seen).startswith("hpcdat: still working after 0 s: find the images")
    with announcing("hide", shown=False):
        pass


def test_the_request_of_this_process_is_found():
    # Commands that other tests run in this process leave theirs.
    handlers = {number: signal.signal(number, signal.SIG_DFL) for number in StopRequest.SIGNALS}
    try:
        assert installed_stop_request() is None
        stop = StopRequest()
        assert installed_stop_request() is stop
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def test_a_stop_noticed_by_one_worker_in_its_work_stops_all():
    """It is not reported as a failure, so that the command can resume."""

    def program(workers):
        stop = Stop(requested=workers.rank == 1)

        def work(poll):
            if workers.rank == 1:
                Wait("images", stop).check()
            while True:
                poll()

        with pytest.raises(Stopped, match="rerun the same command to measure") as caught:
            run_unevenly(workers, "measure", work, stop)
        with pytest.raises(Stopped, match="stopped while waiting for images"):
            workers.on_all_ranks("read", lambda: workers.rank and Wait("images", stop).check())
        return caught.value.everywhere

    assert run_threads(loopback(2), program) == [True, True]


def test_a_stop_that_the_caller_ignores_is_an_error():
    with pytest.raises(Stopped, match="while waiting for images"):
        run_unevenly(SingleProcess(), "measure", lambda poll: Wait("images", Stop()).check(), None)
