"""What launchers say, and the variables for Horovod."""

import pytest

from hpcdat.distributed.horovod_over_srun import horovod_variables, over_mpi
from hpcdat.distributed.launcher import Launched, launched
from hpcdat.errors import InputError


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


PMIX = {"PMIX_NAMESPACE": "slurm.pmix.7.0", "PMIX_RANK": "1"}


@pytest.mark.parametrize(
    "environ, mpi",
    [
        ({}, False),
        # A site where srun serves PMIx by default.
        (PMIX, False),
        (PMIX | {"HOROVOD_CONTROLLER": "gloo"}, False),
        (PMIX | {"HOROVOD_CONTROLLER": "mpi"}, True),
        (PMIX | {"HOROVOD_CONTROLLER": "MPI"}, True),
    ],
)
def test_workers_of_srun_use_mpi_only_if_they_are_to(environ, mpi):
    assert over_mpi(environ) is mpi


def test_mpi_without_pmix_is_refused():
    """Open MPI would start each task alone."""
    with pytest.raises(InputError, match=r"started without PMIx.*--mpi=pmix.*unset HOROVOD_CONTROLLER"):
        over_mpi({"HOROVOD_CONTROLLER": "mpi", "PMI_RANK": "1"})


def test_a_container_without_the_files_of_pmix_is_refused(tmp_path):
    """Open MPI would crash."""
    environ = PMIX | {"HOROVOD_CONTROLLER": "mpi", "PMIX_SERVER_TMPDIR": f"{tmp_path}/pmix.7.0/"}
    with pytest.raises(InputError, match=rf"no folder {tmp_path}/pmix.7.0 .*bind it into the container"):
        over_mpi(environ)
    (tmp_path / "pmix.7.0").mkdir()
    assert over_mpi(environ)
