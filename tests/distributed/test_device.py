"""Which GPU a worker computes on, for any number of GPUs: torch's view of them is replaced."""

import threading
from types import SimpleNamespace

import pytest
import torch

from hpcdat.config.job_file import read_job
from hpcdat.distributed.device import check_own_gpus, choose_device, same_gpu
from hpcdat.distributed.loopback import loopback, run_threads
from hpcdat.errors import InputError
from hpcdat.exchange.pipeline import Pipeline
from tests.conftest import DEMO

JOB = read_job(DEMO)


@pytest.fixture
def machine(monkeypatch):
    """Makes torch see so many GPUs; collects those that were made current."""
    current = []

    def see(count):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "set_device", current.append)
        monkeypatch.setattr(
            torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=f"GPU-{device.index}")
        )
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        return current

    return see


@pytest.mark.parametrize(
    "gpus, node_of, expected",
    [
        (4, [0, 0, 0, 0], [0, 1, 2, 3]),
        (2, [0, 0, 1, 1], [0, 1, 0, 1]),
        # As many as there are workers, or one for each, which the launcher has chosen.
        (8, [0, 1, 1], [0, 0, 1]),
        (1, [0, 0], [0, 0]),
        (2, [0, 0, 0], [0, 1, 0]),
    ],
)
def test_workers_of_a_node_take_its_gpus_in_turn(machine, gpus, node_of, expected):
    current = machine(gpus)
    chosen = [choose_device(JOB, rank) for rank in loopback(len(node_of), node_of=node_of)]
    assert chosen == current == [torch.device("cuda", number) for number in expected]


def test_a_job_for_the_cpu_takes_no_gpu(machine):
    assert machine(2) == []
    (worker,) = loopback(1)
    assert choose_device(read_job(DEMO, ["device=cpu"]), worker) == torch.device("cpu")


def test_workers_do_not_all_take_the_first_of_several_mig_instances(machine, monkeypatch):
    machine(1)
    worker, _ = loopback(2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-one,MIG-two")
    with pytest.raises(InputError, match="names 2 MIG instances, of which a process can use only the first"):
        choose_device(JOB, worker)
    # One worker can use one, and each worker the one that the launcher shows it.
    assert choose_device(JOB, *loopback(1)).type == "cuda"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-two")
    assert choose_device(JOB, worker).type == "cuda"


@pytest.mark.parametrize(
    "gpus, node_of, nccl, refused",
    [
        (2, [0, 0], True, False),
        (1, [0, 0], True, True),
        (1, [0, 1], True, False),
        (2, [0, 1, 1, 1], True, True),
        # Horovod without NCCL sums in the CPU's memory.
        (1, [0, 0], False, False),
    ],
)
def test_workers_that_nccl_connects_must_not_share_a_gpu(machine, gpus, node_of, nccl, refused):
    machine(gpus)

    def check(rank):
        rank.nccl = nccl
        check_own_gpus(choose_device(JOB, rank), rank)

    ranks = loopback(len(node_of), node_of=node_of)
    if not refused:
        run_threads(ranks, check)
        return
    with pytest.raises(InputError, match=r": \d workers share \d GPUs?, and NCCL needs one for each: start"):
        run_threads(ranks, check)


def test_threads_that_exchange_have_the_workers_gpu(machine, monkeypatch):
    machine(4)
    current = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(
        torch.cuda, "set_device", lambda n: current.append((n, threading.current_thread().name))
    )
    pipeline = Pipeline()
    pipeline.submit(lambda: (yield from ()), lambda _: None)
    pipeline.wait()
    pipeline.close()
    assert current == [(3, "exchange")]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    same_gpu()()
    assert len(current) == 1
