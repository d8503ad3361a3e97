"""What goes wrong on clusters, done on purpose: a run ends as if nothing had been, or says what was."""

import os
import re
import signal
import time

import pytest

from hpcdat.storage.run_folder import RunFolder
from tests.cluster.nodes import all_whole, finish, same, wait_for, weights

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]

# Whichever of the two time-outs, Gloo's and the worker's own, is there first.
GAVE_UP = r"hpcdat: worker \d on node\d(: lost the other workers| has waited 5 s for the other workers)"


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
    # A start on a busy machine may take long, which is mentioned.
    messages = [line for line in done.stderr.splitlines() if not line.startswith("hpcdat: still working")]
    assert done.returncode == 0 and messages == [], done.stderr
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
def test_a_run_under_mpirun_that_slurm_takes_off_its_nodes(
    cluster, with_mpirun, undisturbed_over_mpi, tmp_path
):
    job = cluster.submit_by_command(tmp_path / "under $(fire)", *with_mpirun)
    job.trains()
    cluster.do("scontrol", "requeue", str(job.number))
    job.goes_on()
    assert same(weights(job.folder), weights(undisturbed_over_mpi))


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
