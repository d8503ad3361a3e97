"""Commands within an allocation of a real Slurm."""

import sys

import pytest

pytestmark = [pytest.mark.distributed, pytest.mark.full]
DOCTOR = [sys.executable, "-m", "hpcdat", "doctor"]


def test_np_in_an_allocation_of_two_nodes_starts_workers_on_this_machine(cluster):
    output = cluster.do("salloc", "--nodes=2", "--ntasks-per-node=1", *DOCTOR, "-np", "2")
    assert "2 workers on 1 node, started by mpirun" in output
