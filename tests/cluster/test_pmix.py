"""Workers that srun starts with Slurm's plugin for PMIx."""

import re
import subprocess
import sys

import pytest

from tests.cluster.nodes import same, weights
from tests.conftest import CHECKOUT

pytestmark = [pytest.mark.distributed, pytest.mark.full, pytest.mark.timeout(600)]
DOCTOR = [sys.executable, "-m", "hpcdat", "doctor"]


@pytest.fixture
def srun(cluster):
    """Run a command on two nodes; skips, loudly, where Slurm cannot serve PMIx."""

    def run(*command, **variables):
        return subprocess.run(
            ["srun", "--nodes=2", "--ntasks=2", *command],
            cwd=CHECKOUT,
            env=cluster.environment | variables,
            capture_output=True,
            text=True,
            timeout=100,
        )

    tried = run("--mpi=pmix", "true")
    if tried.returncode:
        pytest.skip(f"NO PMIX IN THIS SLURM (Debian: libpmix-dev): {tried.stderr.strip()}")
    return run


def test_srun_starts_workers_over_mpi_which_stop_and_resume(cluster, srun, undisturbed_over_mpi, tmp_path):
    """As mpirun does: the sums of three workers are in the order of MPI's algorithm."""
    profile = tmp_path / "site.yaml"
    profile.write_text("mpi: pmix\ninterface: eth0\n")
    job = cluster.submit_by_command(tmp_path / "pmix", "--site", str(profile))
    job.trains()
    cluster.do("scancel", "--signal=USR1", "--batch", str(job.number))
    job.says("hpcdat: requeue: stopped with a checkpoint", 60)
    job.goes_on()
    found = job.folder.environment()
    assert (found["nodes"], found["launcher"], found["transport"]) == (3, "srun", "MPI")
    assert same(weights(job.folder), weights(undisturbed_over_mpi))


def test_pmix_alone_changes_nothing(srun):
    """Many sites have it as the default of srun, whichever MPI the environment has."""
    done = srun("--mpi=pmix", *DOCTOR)
    assert "2 workers on 2 nodes, started by srun" in done.stdout, done.stderr
    assert "transport Gloo" in done.stdout


def test_mpi_without_pmix_is_refused_in_one_line(srun):
    done = srun("--mpi=none", *DOCTOR, HOROVOD_CONTROLLER="mpi")
    others = "srun: |slurmstepd|hpcdat: still working"
    lines = [line for line in done.stderr.splitlines() if not re.match(others, line)]
    assert done.returncode == 2, done.stderr
    assert len(lines) == 1 and "srun was started without PMIx" in lines[0]
