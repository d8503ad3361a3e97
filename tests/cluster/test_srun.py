"""What launchers say, and the variables for Horovod."""

import pytest

from hpcdat.distributed.horovod_over_srun import horovod_variables
from hpcdat.distributed.launcher import Launched, launched


def test_ranks_of_uneven_nodes():
    """Nodes with 2, 2 and 1 tasks: local rank 1 exists on the first two only."""
    task = {
        "SLURM_PROCID": "3",
        "SLURM_STEP_NUM_TASKS": "5",
        "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
        "SLURM_NODEID": "1",
        "SLURM_LOCALID": "1",
        "SLURMD_NODENAME": "n2",
    }
    variables = horovod_variables(task, 23456)
    assert (variables["HOROVOD_RANK"], variables["HOROVOD_SIZE"]) == ("3", "5")
    assert (variables["HOROVOD_LOCAL_RANK"], variables["HOROVOD_LOCAL_SIZE"]) == ("1", "2")
    assert (variables["HOROVOD_CROSS_RANK"], variables["HOROVOD_CROSS_SIZE"]) == ("1", "2")
    assert variables["HOROVOD_GLOO_RENDEZVOUS_ADDR"] == "127.0.0.1", "each worker has a proxy of its own"
    assert variables["HOROVOD_GLOO_RENDEZVOUS_PORT"] == "23456"


@pytest.mark.parametrize(
    "environ, place",
    [
        ({}, Launched("none", 0, 1)),
        ({"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "4"}, Launched("mpirun", 2, 4)),
        ({"HOROVOD_RANK": "1", "HOROVOD_SIZE": "3"}, Launched("horovodrun", 1, 3)),
        ({"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "6"}, Launched("srun", 5, 6)),
        # The batch script itself is one process, however many tasks were asked for.
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "6"}, Launched("none", 0, 1)),
        # mpirun inside an allocation hands Slurm's variables on.
        (
            {
                "SLURM_PROCID": "0",
                "SLURM_STEP_NUM_TASKS": "2",
                "OMPI_COMM_WORLD_RANK": "7",
                "OMPI_COMM_WORLD_SIZE": "8",
            },
            Launched("mpirun", 7, 8),
        ),
    ],
)
def test_what_the_launcher_says(environ, place):
    assert launched(environ) == place
