"""What goes wrong on clusters, done on purpose: a run ends as if nothing had been, or says what was."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch

from hpcdat.data.digits import write_digits
from hpcdat.storage.checkpoint_format import load_checkpoint
from hpcdat.storage.run_folder import RunFolder
from tests.cluster.nodes import SETTINGS, finish, wait_for
from tests.conftest import CHECKOUT, DEMO, run_here

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]

# Whichever of the two time-outs, Gloo's and the worker's own, is there first.
GAVE_UP = r"hpcdat: worker \d on node\d(: lost the other workers| has waited 5 s for the other workers)"


@pytest.fixture(scope="session")
def undisturbed(cluster, tmp_path_factory):
    """The folder of a run that nothing happens to, handed to Slurm by the command."""
    job = cluster.submit_by_command(tmp_path_factory.mktemp("undisturbed") / "run")
    job.ends_well()
    return job.folder


@pytest.fixture
def small_disk(tmp_path):
    """Two megabytes: two checkpoints, and no room to write a third beside them."""
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], capture_output=True)
    if done.returncode:
        pytest.skip(f"NO FULL DISK HERE: {done.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


def train_here(run_dir):
    return run_here("train", DEMO, "--set", f"run_dir={run_dir}", *SETTINGS)


@pytest.fixture(params=["one process", pytest.param("three nodes", marks=pytest.mark.full)])
def training(request, tmp_path):
    """How runs are trained, where their first worker is, and a run that nothing happens to."""
    if request.param == "three nodes":
        cluster = request.getfixturevalue("cluster")
        return cluster.train, " (worker 0 on node1)", request.getfixturevalue("undisturbed")
    train_here(tmp_path / "undisturbed")
    return train_here, "", RunFolder(tmp_path / "undisturbed")


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


def test_srun_starts_the_workers_without_mpi(undisturbed):
    environment = undisturbed.environment()
    assert (environment["nodes"], environment["launcher"], environment["transport"]) == (3, "srun", "Gloo")


@pytest.mark.full
def test_a_worker_that_is_killed(cluster, undisturbed, tmp_path):
    job = cluster.submit(tmp_path / "run")
    job.trains()
    os.kill(cluster.worker(2, tmp_path / "run"), signal.SIGKILL)
    job.says(r"hpcdat: requeue: failed \(code \d+\): epoch [1-9]", 60)
    assert "srun: error: node2: task 1: Killed" in job.log()
    assert all_whole(job.folder)
    job.goes_on()
    assert same(weights(job.folder), weights(undisturbed))


def test_a_node_that_loses_its_power(cluster, undisturbed, tmp_path):
    """The job continues without that node. Slurm repeats the signal that ended its tasks there for minutes:
    were the node back at once, the repeated signal would end those of the restarted job.
    """
    job = cluster.submit(tmp_path / "run", "stall_timeout=5")
    job.trains()
    cluster.cut_power(3)
    try:
        job.says(GAVE_UP, 30)
        assert all_whole(job.folder)
        # After SlurmdTimeout; srun may be first, which counts nodes from 0.
        job.says("srun: error: (Node failure on node3|Cannot communicate with node 2)", 60)
        job.goes_on()
    finally:
        cluster.power_on(3)
    assert same(weights(job.folder), weights(undisturbed))


@pytest.mark.full
def test_a_link_that_is_cut_for_a_while(cluster, undisturbed, tmp_path):
    folder = RunFolder(tmp_path / "run")
    process = cluster.start(tmp_path / "run")
    wait_for(lambda: len(folder.metrics("epoch")) >= 2)
    cluster.set_link(2, "down")
    time.sleep(8)
    before = len(folder.metrics("epoch"))
    cluster.set_link(2, "up")
    done = finish(process)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert before <= 3, "training did not wait for the link: this has shown nothing"
    assert same(weights(folder), weights(undisturbed))


def test_a_link_that_is_cut_for_longer_than_the_stall_timeout(cluster, undisturbed, tmp_path):
    folder = RunFolder(tmp_path / "run")
    process = cluster.start(tmp_path / "run", "stall_timeout=5")
    wait_for(lambda: len(folder.metrics("epoch")) >= 2)
    cluster.set_link(2, "down")
    try:
        done = finish(process, 40)
    finally:
        cluster.set_link(2, "up")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert re.search(GAVE_UP, done.stderr), done.stderr
    assert all_whole(folder)


def test_a_disk_that_is_full(training, small_disk):
    train, where, undisturbed = training
    run_dir = small_disk / "run"
    done = train(run_dir)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"No space left on device: '{run_dir}/checkpoints/epoch-new.pt'{where}" in done.stderr
    folder = RunFolder(run_dir)
    assert all_whole(folder) and not half_written(folder) and folder.newest_checkpoint().epoch == 2
    rest = small_disk / "something else"
    fill(rest)
    done = train(run_dir)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"No space left on device: '{run_dir}/job.yaml'{where}" in done.stderr
    again = [sys.executable, "-m", "hpcdat.slurm.preemption", str(run_dir), "1", "no"]
    decided = subprocess.run(again, cwd=CHECKOUT, capture_output=True, text=True)
    assert decided.returncode == 1 and "Traceback" not in decided.stderr
    assert "no requeue: failed (code 1): epoch 2, step 0" in decided.stderr
    subprocess.run(["mount", "-o", "remount,size=16m", small_disk], check=True)
    rest.rename(folder.checkpoints.folder / ".step.pt-killed")
    done = train(run_dir)
    assert done.returncode == 0, done.stderr
    assert "resuming from epoch 2, step 0" in done.stdout
    assert all_whole(folder) and not half_written(folder) and same(weights(folder), weights(undisturbed))


@pytest.mark.full
def test_a_scratch_disk_that_is_full(cluster, undisturbed, small_disk, tmp_path):
    """Named with its node before anything is trained; with room, training gives the same weights."""
    write_digits(tmp_path / "digits")
    fill(small_disk / "something else")
    data = ["data.source=folder", f"data.root={tmp_path / 'digits'}", f"data.stage={small_disk}"]
    done = finish(cluster.start(tmp_path / "run", *data))
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert re.search(rf"data.stage: {small_disk}.*\(worker \d on node\d\)", done.stderr), done.stderr
    assert not list(small_disk.rglob("copies*"))
    (small_disk / "something else").unlink()
    done = finish(cluster.start(tmp_path / "run", *data))
    assert done.returncode == 0, done.stderr
    assert list(small_disk.rglob("copies*.images"))
    assert same(weights(RunFolder(tmp_path / "run")), weights(undisturbed))


@pytest.mark.full
def test_the_time_limit(cluster, undisturbed, tmp_path):
    job = cluster.submit(tmp_path / "run")
    job.trains()
    # Slurm's warning, as the script asks for it.
    cluster.do("scancel", "--signal=USR1", "--batch", str(job.number))
    job.says("hpcdat: requeue: stopped with a checkpoint", 60)
    assert all_whole(job.folder)
    job.goes_on()
    assert same(weights(job.folder), weights(undisturbed))


@pytest.mark.full
def test_a_run_under_mpirun_that_slurm_takes_off_its_nodes(cluster, tmp_path):
    profile = tmp_path / "site.yaml"
    profile.write_text(f"launcher: mpirun\ninterface: {cluster.box.address(0)}/24\n")
    peace, fire = tmp_path / "in peace", tmp_path / "under $(fire)"
    undisturbed = cluster.submit_by_command(peace, "--site", str(profile))
    undisturbed.ends_well()
    job = cluster.submit_by_command(fire, "--site", str(profile))
    job.trains()
    cluster.do("scontrol", "requeue", str(job.number))
    job.goes_on()
    assert same(weights(job.folder), weights(undisturbed.folder))


def test_slurm_takes_the_scripts_of_all_launchers(cluster, tmp_path):
    for launcher in ("srun", "mpirun", "horovodrun"):
        cluster.do("sbatch", "--test-only", str(cluster.script(tmp_path / f"a b'c$(d) {launcher}", launcher)))


@pytest.mark.full
def test_torchrun_on_every_node_stops_in_time_and_goes_on(cluster, tmp_path):
    """Its exit code is 1 in any case; the batch script finds that of the workers in the run folder."""
    job = cluster.submit(tmp_path / "run", launcher="torchrun")
    job.trains()
    cluster.do("scancel", "--signal=USR1", "--batch", str(job.number))
    job.says("hpcdat: requeue: stopped with a checkpoint", 60)
    job.goes_on()
    environment = job.folder.environment()
    assert (environment["nodes"], environment["launcher"], environment["engine"]) == (3, "torchrun", "torch")
