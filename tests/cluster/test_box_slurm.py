"""A real Slurm in a box: submitted, stopped, put back into the queue, done as if nothing had been."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hpcdat.cluster.box import SHARED_CORES
from hpcdat.cluster.box_slurm import FOLDERS, configuration_file
from hpcdat.cluster.slurm import Request, Site, write_script
from hpcdat.job_file import read_job
from hpcdat.record import RunFolder
from tests.conftest import CHECKOUT, DEMO
from tests.distributed.ranks import environment

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(900)]


@pytest.fixture
def login(make_box):
    """Runs commands as on the login node of three nodes with Slurm."""
    made = make_box(nodes=3, slurm=True)

    def run(*command):
        done = subprocess.run(
            command,
            cwd=CHECKOUT,
            env=SHARED_CORES | environment() | {"SLURM_CONF": str(configuration_file(made))},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run.box = made
    return run


def submit(login, run_dir, *options):
    settings = [f"run_dir={run_dir}", "epochs=4", "attack.steps=1", "evaluation.steps=1"]
    command = [sys.executable, "-m", "hpcdat", "submit", str(DEMO), "--nodes", "3", "--time", "30", *options]
    told = login(*command, "--set", *settings)
    return int(told.split()[1]), run_dir / "slurm"


def wait_for(what, log, seconds=300):
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "\n".join(file.read_text() for file in log.glob("*.log"))
        time.sleep(0.2)


def finished(run_dir):
    return lambda: (run_dir / "result.json").exists()


def weights(run_dir):
    return RunFolder(run_dir).newest_checkpoint().model


def test_a_run_that_slurm_takes_off_its_nodes_ends_as_one_left_in_peace(login, tmp_path):
    peace, fire = tmp_path / "in peace", tmp_path / "under $(fire)"
    profile = tmp_path / "site.yaml"
    network = login.box.address(0) + "/24"
    profile.write_text(json.dumps({"launcher": "mpirun", "interface": network}))
    for run_dir in (peace, fire):
        number, logs = submit(login, run_dir, "--site", str(profile))
        if run_dir == fire:
            wait_for(lambda: len(RunFolder(fire).metrics("epoch")) >= 1, logs)
            login("scontrol", "requeue", str(number))
            wait_for(lambda number=number: "PENDING" in login("squeue", "-ho%T", f"-j{number}"), logs)
            wait_for(lambda: set(login("sinfo", "-hNo%T").split()) == {"idle"}, logs)
            # Slurm would let it wait for two minutes. A start within the second in which it has withdrawn
            # the credential of the last one fails, and the job with it.
            time.sleep(2)
            login("scontrol", "update", f"JobId={number}", "StartTime=now")
        wait_for(finished(run_dir), logs)
    log = (fire / "slurm" / f"{number}.log").read_text()
    assert "goes on" in log or "from epoch" in log, log
    one, other = weights(peace), weights(fire)
    assert all((one[name] == other[name]).all() for name in one)


def test_srun_starts_the_workers_without_mpi(login, tmp_path):
    _, logs = submit(login, tmp_path / "run")
    wait_for(finished(tmp_path / "run"), logs)
    team = RunFolder(tmp_path / "run").environment()
    assert team["nodes"] == 3


def test_slurm_takes_the_scripts_and_leaves_nothing_behind(login, tmp_path):
    for launcher in ("srun", "mpirun", "horovodrun"):
        job = read_job(DEMO).model_copy(update={"run_dir": tmp_path / f"a b'c$(d) {launcher}"})
        script, _ = write_script(job, Site(launcher=launcher), Request(3, 1, 0, "10"))
        login("sbatch", "--test-only", str(script))
    made = login.box
    folder = FOLDERS / made.name
    pids = [int(file.read_text()) for file in folder.glob("*.pid")]
    assert len(pids) == 5, "munged, slurmctld and three slurmd"
    login(sys.executable, "-m", "hpcdat", "box", "down", made.name)
    assert not folder.exists()
    assert not any(alive(pid) for pid in pids)


def alive(pid):
    """Whether it runs; one that has ended may wait for a parent to look at it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
