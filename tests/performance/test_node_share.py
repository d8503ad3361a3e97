"""One worker's share of a node, and the processes that compute what the others would."""

import os

import pytest
import torch

from hpcdat.config.job_file import read_job
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.errors import InputError, WorkerError
from hpcdat.performance import node_share
from hpcdat.performance.microbenchmarks import SimulatedCommunicator
from hpcdat.performance.node_share import NodeShare, OtherWorkers, share_of_node, use_share
from tests.conftest import DEMO

CPU = torch.device("cpu")


@pytest.fixture
def cores(monkeypatch):
    """A machine with four cores for this process, of which each worker gets its share of threads."""
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(node_share, "emulated_links", lambda: None)
    threads = torch.get_num_threads()
    yield [0, 1, 2, 3]
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "per_node, at_once, threads, text",
    [
        (1, 1, 4, "4 threads"),
        (2, 2, 2, "2 workers at once, each with 2 threads"),
        (3, 3, 1, "3 workers at once, each with 1 thread"),
        (6, 4, 1, "4 workers at once, each with 1 thread, seconds times 1.5 for 6 workers on 4 cores"),
    ],
)
def test_a_worker_has_its_share_of_threads_and_cores(cores, per_node, at_once, threads, text):
    assert use_share(read_job(DEMO), SingleProcess(), per_node) == CPU
    share = share_of_node(SingleProcess(), per_node, CPU)
    assert share == NodeShare(per_node, [cores] * at_once, threads, own_cores=True)
    assert share.describe() == text and share.slowdown == max(1, per_node / 4)


def test_threads_set_by_the_user_may_exceed_the_cores(cores, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    torch.set_num_threads(3)
    use_share(read_job(DEMO), SingleProcess(), 2)
    share = share_of_node(SingleProcess(), 2, CPU)
    assert share.threads == 3 and not share.own_cores


def test_nodes_that_share_a_machine_have_no_cores_of_their_own(cores, monkeypatch):
    monkeypatch.setattr(node_share, "emulated_links", lambda: "1gbit links")
    assert not share_of_node(SingleProcess(), 1, CPU).own_cores


def test_workers_that_are_bound_to_cores_leave_theirs_to_processes_in_their_place(cores):
    workers = SimulatedCommunicator(3)
    workers.node_of = [0, 0, 1]
    workers.all_gather_object = lambda value, name: [[0, [0, 1]], [0, [2, 3]], [1, [0]]]
    assert share_of_node(workers, 2, CPU).cores == [[0, 1], [2, 3]]
    assert share_of_node(workers, 3, CPU).cores == [[0, 1], [2, 3], [0, 1]]


def test_on_a_gpu_no_other_worker_is_needed(cores):
    share = share_of_node(SingleProcess(), 8, torch.device("cuda", 0))
    assert len(share.cores) == share.slowdown == 1


def test_another_worker_computes_until_the_one_that_started_it_ends():
    here = sorted(os.sched_getaffinity(0))
    share = NodeShare(2, [here, here], threads=1, own_cores=True)
    job = read_job(DEMO, ["attack.steps=1", "objective.lambda=0.5"])
    with OtherWorkers(job, 10, 4, share, lambda: None) as others:
        (process,) = others._processes
        others.check()
        assert process.poll() is None
        # As when this process dies.
        process.stdin.close()
        assert process.wait(timeout=60) == 0
        with pytest.raises(WorkerError, match=r"a trial with 2 workers on this machine failed: .* code 0"):
            others.check()


def test_a_worker_that_cannot_start_is_reported_with_its_last_line(monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "torch.py").write_text("raise SystemExit('no torch here')")
    share = NodeShare(2, [[0], [0]], threads=1, own_cores=True)
    others = OtherWorkers(read_job(DEMO), 10, 4, share, lambda: None)
    with pytest.raises(WorkerError, match="ended with code 1: no torch here"), others:
        pytest.fail("it has started")
    assert not others._processes


def test_a_request_to_stop_is_heard_while_they_start():
    def poll():
        raise InputError("stop")

    share = NodeShare(2, [[0], [0]], threads=1, own_cores=True)
    others = OtherWorkers(read_job(DEMO), 10, 4, share, poll)
    with pytest.raises(InputError, match="stop"), others:
        pytest.fail("it has started")
    assert not others._processes
