"""What goes wrong on clusters, done on purpose: a run ends as if nothing had been, or says what was."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from hpcdat.checkpoint import load_checkpoint
from hpcdat.cluster import box_slurm
from hpcdat.cluster.box import SHARED_CORES
from hpcdat.cluster.slurm import Request, Site, write_script
from hpcdat.job_file import read_job
from hpcdat.record import RunFolder
from tests.conftest import CHECKOUT, DEMO
from tests.distributed.ranks import environment

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]

SETTINGS = ["epochs=10", "attack.steps=1", "evaluation.every=100", "evaluation.steps=1"]
# Whichever of the two time-outs, Gloo's and the worker's own, is there first.
GAVE_UP = r"hpcdat: worker \d on node\d(: lost the other workers| has waited 10 s for the other workers)"


class Cluster:
    """Three nodes with Slurm, seen from their login node."""

    def __init__(self, made):
        self.box = made
        self.environment = SHARED_CORES | environment()
        self.environment["SLURM_CONF"] = str(box_slurm.configuration_file(made))

    def do(self, *command):
        done = subprocess.run(
            command, cwd=CHECKOUT, env=self.environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def submit(self, run_dir, *settings):
        job = read_job(DEMO, [f"run_dir={run_dir}", *SETTINGS, *settings])
        script, _ = write_script(job, Site(), Request(3, 1, 0, "30"))
        return Submitted(self, run_dir, int(self.do("sbatch", "--parsable", str(script))))

    def start(self, run_dir, *settings):
        """A worker a node without Slurm's doing; the same arithmetic as under srun."""
        settings = [f"run_dir={run_dir}", *SETTINGS, *settings]
        train = [sys.executable, "-m", "hpcdat", "train", str(DEMO), "--set", *settings]
        command = [sys.executable, "-m", "hpcdat", "box", "run", self.box.name, "-np", "3", "--", *train]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, cwd=CHECKOUT, env=self.environment, text=True, **pipes)

    def train(self, run_dir):
        return finish(self.start(run_dir))

    def is_idle(self):
        return set(self.do("sinfo", "--noheader", "--Node", "--format=%T").split()) == {"idle"}

    def set_link(self, node, state):
        self.do("ip", "link", "set", f"{self.box.bridge}n{node}", state)

    def processes(self, node):
        """Those of a node, by their process id."""
        return [int(pid) for pid in self.do("ip", "netns", "pids", self.box.namespace(node)).split()]

    def worker(self, node, run_dir):
        """The process of a node's worker."""
        for pid in self.processes(node):
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
            if arguments[0] == sys.executable and any(str(run_dir) in text for text in arguments):
                return pid
        raise AssertionError(f"no worker on node{node}")

    def cut_power(self, node):
        """All of a node at once; the others are not told, not even by its kernel."""
        self.set_link(node, "down")
        for pid in self.processes(node):
            os.kill(pid, signal.SIGKILL)

    def power_on(self, node):
        self.set_link(node, "up")
        box_slurm.start_node(self.box, node)


def wait_for(what, seconds=240, log=lambda: ""):
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, log()
        time.sleep(0.1)


class Submitted:
    """A job in the queue."""

    def __init__(self, cluster, run_dir, number):
        self.cluster, self.number = cluster, number
        self.folder = RunFolder(run_dir)

    def log(self):
        file = self.folder.slurm_folder / f"{self.number}.log"
        return file.read_text() if file.exists() else ""

    def wait_for(self, what, seconds=240):
        wait_for(what, seconds, self.log)

    def trains(self, epochs=2):
        self.wait_for(lambda: len(self.folder.metrics("epoch")) >= epochs)

    def says(self, pattern, seconds=240):
        self.wait_for(lambda: re.search(pattern, self.log()), seconds)

    def ends_well(self):
        self.wait_for(lambda: self.folder.metrics("finished"))
        self.wait_for(lambda: self.state() == "")

    def state(self):
        return self.cluster.do("squeue", "--noheader", "--format=%T", f"--jobs={self.number}").strip()

    def goes_on(self):
        """After a way through the queue, to the end."""
        self.wait_for(lambda: self.state() == "PENDING" and self.cluster.is_idle())
        # Slurm would let it wait for two minutes. A start within the second in which it has withdrawn the
        # credential of the last one fails, and the job with it.
        time.sleep(2)
        self.cluster.do("scontrol", "update", f"JobId={self.number}", "StartTime=now")
        self.says(r"going on from epoch [1-9]")
        self.ends_well()


@pytest.fixture(scope="module")
def cluster(make_shared_box):
    return Cluster(make_shared_box(nodes=3, slurm=True))


@pytest.fixture(scope="module")
def undisturbed(cluster, tmp_path_factory):
    """Weights of a run that nothing happens to."""
    job = cluster.submit(tmp_path_factory.mktemp("undisturbed") / "run")
    job.ends_well()
    return weights(job.folder)


@pytest.fixture
def small_disk(cluster, tmp_path):
    """Two megabytes: two checkpoints, and no room to write a third beside them."""
    disk = tmp_path / "disk"
    disk.mkdir()
    cluster.do("mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk))
    yield disk
    cluster.do("umount", str(disk))


def finish(process, seconds=240):
    """Its exit code and words, when it has ended."""
    try:
        out, err = process.communicate(timeout=seconds)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def weights(folder):
    return folder.newest_checkpoint().model


def same(one, other):
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def all_whole(folder):
    """Whether there are checkpoints, each as it was written; a write that was killed has another name."""
    files = list(folder.checkpoints.folder.glob("*.pt"))
    return bool(files) and all(load_checkpoint(file) for file in files)


def half_written(folder):
    return list(folder.checkpoints.folder.glob(".*"))


def fill(file):
    """Take all that is left of a disk."""
    with file.open("wb", buffering=0) as rest, contextlib.suppress(OSError):
        while True:
            rest.write(bytes(4096))


def test_a_worker_that_is_killed(cluster, undisturbed, tmp_path):
    job = cluster.submit(tmp_path / "run")
    job.trains()
    os.kill(cluster.worker(2, tmp_path / "run"), signal.SIGKILL)
    job.says(r"back into the queue: failed \(code \d+\) epoch [1-9]", 60)
    assert "srun: error: node2: task 1: Killed" in job.log()
    assert all_whole(job.folder)
    job.goes_on()
    assert same(weights(job.folder), undisturbed)


def test_a_node_that_loses_its_power(cluster, undisturbed, tmp_path):
    job = cluster.submit(tmp_path / "run", "stall_timeout=10")
    job.trains()
    cluster.cut_power(3)
    job.says(GAVE_UP, 30)
    assert all_whole(job.folder)
    # After SlurmdTimeout, 30 s in a box; srun may be first, which counts nodes from 0.
    job.says("srun: error: (Node failure on node3|Cannot communicate with node 2)", 60)
    job.wait_for(lambda: job.state() == "PENDING", 60)
    cluster.power_on(3)
    job.goes_on()
    assert same(weights(job.folder), undisturbed)


def test_a_link_that_is_cut_for_a_while(cluster, undisturbed, tmp_path):
    folder = RunFolder(tmp_path / "run")
    process = cluster.start(tmp_path / "run")
    wait_for(lambda: len(folder.metrics("epoch")) >= 2)
    cluster.set_link(2, "down")
    time.sleep(20)
    before = len(folder.metrics("epoch"))
    cluster.set_link(2, "up")
    done = finish(process)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert before <= 3, "training did not wait for the link: this has shown nothing"
    assert same(weights(folder), undisturbed)


def test_a_link_that_is_cut_for_longer_than_the_stall_timeout(cluster, undisturbed, tmp_path):
    folder = RunFolder(tmp_path / "run")
    process = cluster.start(tmp_path / "run", "stall_timeout=10")
    wait_for(lambda: len(folder.metrics("epoch")) >= 2)
    cluster.set_link(2, "down")
    try:
        done = finish(process, 40)
    finally:
        cluster.set_link(2, "up")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert re.search(GAVE_UP, done.stderr), done.stderr
    assert all_whole(folder)


def test_a_disk_that_is_full(cluster, undisturbed, small_disk):
    run_dir = small_disk / "run"
    done = cluster.train(run_dir)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"No space left on device: '{run_dir}/checkpoints/epoch-new.pt' (worker 0 on node1)" in done.stderr
    folder = RunFolder(run_dir)
    assert all_whole(folder) and not half_written(folder) and folder.newest_checkpoint().epoch == 2
    rest = small_disk / "something else"
    fill(rest)
    done = cluster.train(run_dir)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"No space left on device: '{run_dir}/job.yaml' (worker 0 on node1)" in done.stderr
    again = [sys.executable, "-m", "hpcdat.cluster.requeue", str(run_dir), "1", "no"]
    decided = subprocess.run(again, cwd=CHECKOUT, capture_output=True, text=True)
    assert decided.returncode == 1 and "Traceback" not in decided.stderr
    assert "not requeued: failed (code 1) epoch 2, step 0" in decided.stderr
    cluster.do("mount", "-o", "remount,size=16m", str(small_disk))
    rest.rename(folder.checkpoints.folder / ".step.pt-killed")
    done = cluster.train(run_dir)
    assert done.returncode == 0, done.stderr
    assert "going on from epoch 2, step 0" in done.stdout
    assert all_whole(folder) and not half_written(folder) and same(weights(folder), undisturbed)


def test_the_time_limit(cluster, undisturbed, tmp_path):
    job = cluster.submit(tmp_path / "run")
    job.trains()
    # Slurm's warning, as the script asks for it.
    cluster.do("scancel", "--signal=USR1", "--batch", str(job.number))
    job.says("back into the queue: stopped in time, with a checkpoint", 60)
    assert all_whole(job.folder)
    job.goes_on()
    assert same(weights(job.folder), undisturbed)
