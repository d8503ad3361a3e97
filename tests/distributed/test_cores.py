"""The cores of a worker: bound, limited by a quota, shared with other workers, used by other processes."""

import os

import pytest
import torch

from hpcdat.config.job_file import read_job
from hpcdat.distributed import cores, device
from hpcdat.distributed.cores import (
    CoreUse,
    busy_cores,
    cgroup_quota,
    seconds_waited_for_cores,
    share_of_cores,
)
from hpcdat.distributed.device import choose_device, why_no_gpu
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.errors import InputError
from tests.conftest import DEMO


@pytest.mark.parametrize(
    "limits, own, quota",
    [
        ({}, "0::/", None),
        ({"cpu.max": "150000 100000\n"}, "0::/", 1.5),
        ({"cpu.max": "max 100000\n"}, "0::/", None),
        ({"cpu.max": "400000 100000\n", "a/b/cpu.max": "max 100000\n"}, "0::/a/b", 4.0),
        ({"a/cpu.max": "200000 100000\n", "a/b/cpu.max": "800000 100000\n"}, "0::/a/b", 2.0),
        # In a container, the name is that on the host, and the group is mounted at the root.
        ({"cpu.max": "50000 100000\n"}, "0::/system.slice/docker-1234.scope", 0.5),
        (
            {"cpu/x/cpu.cfs_quota_us": "300000\n", "cpu/x/cpu.cfs_period_us": "100000\n"},
            "5:memory:/x\n4:cpu,cpuacct:/x\n0::/",
            3.0,
        ),
        ({"cpu/x/cpu.cfs_quota_us": "-1\n", "cpu/x/cpu.cfs_period_us": "100000\n"}, "4:cpu,cpuacct:/x", None),
        ({"cpu.max": "nonsense\n"}, "0::/", None),
    ],
)
def test_quotas_of_control_groups(tmp_path, limits, own, quota):
    for name, text in limits.items():
        (tmp_path / "mount" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mount" / name).write_text(text)
    (tmp_path / "own").write_text(own + "\n")
    assert cgroup_quota(tmp_path / "mount", tmp_path / "own") == quota
    assert cgroup_quota(tmp_path / "mount", tmp_path / "none") is None


@pytest.mark.parametrize(
    "workers, quota, share",
    [
        ([range(8)], None, 8),
        ([range(8)] * 2, None, 4),
        # An allocation of 4 cores of a larger node, which its workers share.
        ([range(4)] * 4, None, 1),
        ([range(3)] * 3, None, 1),
        # A launcher that binds each worker to its own.
        ([range(2), range(2, 4)], None, 2),
        ([range(4), range(2, 6)], None, 3),
        ([range(64)] * 2, 6.0, 3),
        ([range(64)] * 2, 0.5, 1),
        ([range(1)] * 5, None, 1),
    ],
)
def test_cores_are_divided_among_the_workers_that_may_use_them(workers, quota, share):
    assert share_of_cores(workers[0], workers, quota) == share


def test_a_worker_by_itself_takes_the_cores_of_its_quota(monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda pid: set(range(64)))
    try:
        for quota, expected in ((3.5, 3), (0.5, 1)):
            monkeypatch.setattr(cores, "cgroup_quota", lambda quota=quota: quota)
            choose_device(read_job(DEMO), SingleProcess())
            assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(threads)


STAT = """cpu  1 2 3 4
cpu0 {a} 0 0 {idle} {io} 0 0 0 {a} 0
cpu1 100 0 0 500 0 0 0 0 0 0
cpu2 {b} 0 0 1000 0 0 0 0 0 0
intr 5
"""


def test_busy_cores_are_read_off_two_readings():
    before = STAT.format(a=100, idle=500, io=40, b=7)
    after = STAT.format(a=175, idle=515, io=50, b=107)
    assert busy_cores([0, 1, 7], before, after) == pytest.approx(0.75)
    assert busy_cores([0, 2], before, after) == pytest.approx(1.75)
    assert busy_cores([0], before, before) == 0


@pytest.fixture
def run(monkeypatch):
    """The warnings of a run of steps of 0.125 s, in each of which threads wait some seconds for a core."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def steps(waited, count=80, threads=2):
        now, waits, use = 0.0, 5.0, CoreUse(threads)
        warnings = []
        for _ in range(count):
            monkeypatch.setattr(cores.time, "perf_counter", lambda now=now: now)
            monkeypatch.setattr(cores, "seconds_waited_for_cores", lambda waits=waits: waits)
            warnings.append(use.step())
            now, waits = now + 0.125, waits + waited
        return [warning for warning in warnings if warning]

    return steps


def test_threads_that_wait_for_cores_are_reported_once_with_numbers(run, monkeypatch):
    (warning,) = run(0.0625)
    assert "in 40 steps (5.0 s) the 2 threads of this worker waited 2.5 s for a core" in warning
    assert "OMP_NUM_THREADS" in warning
    assert run(0.03) == [] and run(0.0625, count=40) == [] and run(0.0625, threads=1) == []
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert run(0.06) == [], "set by the user"


def test_the_kernel_says_how_long_threads_waited(tmp_path):
    for thread, text in (("1", "900 2000000000 5\n"), ("2", "7 500000000 1\n")):
        (tmp_path / thread).mkdir()
        (tmp_path / thread / "schedstat").write_text(text)
    assert seconds_waited_for_cores(tmp_path) == 2.5
    (tmp_path / "2" / "schedstat").write_text("")
    assert seconds_waited_for_cores(tmp_path) is None
    assert seconds_waited_for_cores(tmp_path / "none") is None


@pytest.mark.parametrize("visible", ["", "7", "GPU-of-last-week"])
def test_gpus_hidden_by_a_variable_are_said(tmp_path, monkeypatch, capsys, visible):
    assert not torch.cuda.is_available() or pytest.skip("has a GPU")
    assert why_no_gpu({"CUDA_VISIBLE_DEVICES": visible}) == "" or device.NVIDIA_DRIVER.exists()
    (tmp_path / "version").touch()
    monkeypatch.setattr(device, "NVIDIA_DRIVER", tmp_path / "version")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(InputError, match=f"no usable GPU: CUDA_VISIBLE_DEVICES={visible} names none of its"):
        choose_device(read_job(DEMO, ["device=cuda"]), SingleProcess())
    assert choose_device(read_job(DEMO, ["device=auto"]), SingleProcess()).type == "cpu"
    assert f"computes on its CPU: CUDA_VISIBLE_DEVICES={visible} names none" in capsys.readouterr().err
    choose_device(read_job(DEMO, ["device=cpu"]), SingleProcess())
    assert capsys.readouterr().err == ""
    assert "OMP_NUM_THREADS" in os.environ
