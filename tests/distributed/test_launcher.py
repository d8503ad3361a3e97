"""Launchers that are served, refused, or only left over in a shell."""

import getpass
import os
import sys
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from hpcdat.cli import worker_process
from hpcdat.distributed import local_mpirun
from hpcdat.distributed.launcher import (
    INTERACTIVE_STEP,
    Launched,
    LauncherError,
    check_launcher,
    idle_allocation,
    left_over,
)
from hpcdat.distributed.local_mpirun import check_temporary_folder, local_environment, mpirun_command
from hpcdat.errors import InputError
from tests.conftest import DEMO, run_here

MPIRUN = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "PMIX_NAMESPACE": "prterun-n1-1@1",
    "PMIX_RANK": "1",
}
HOROVODRUN = {"HOROVOD_RANK": "1", "HOROVOD_SIZE": "2", "HOROVOD_GLOO_RENDEZVOUS_ADDR": "10.0.0.1"}
TORCHRUN = {
    "RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "n1",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_RUN_ID": "none",
}
SRUN = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "1",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
    "SLURM_NODEID": "1",
    "SLURM_LOCALID": "0",
}


def without(environ, *names):
    return {name: value for name, value in environ.items() if name not in names}


@pytest.mark.parametrize(
    "environ, names",
    [
        (without(HOROVODRUN, "HOROVOD_GLOO_RENDEZVOUS_ADDR"), "HOROVOD_RANK HOROVOD_SIZE"),
        (
            without(MPIRUN, "PMIX_RANK", "PMIX_NAMESPACE"),
            "OMPI_COMM_WORLD_RANK OMPI_COMM_WORLD_SIZE",
        ),
        (
            without(SRUN, "SLURM_STEP_NODELIST", "SLURM_STEP_ID", "SLURM_STEP_TASKS_PER_NODE"),
            "SLURM_PROCID SLURM_STEP_NUM_TASKS SLURM_NODEID SLURM_LOCALID",
        ),
        (without(TORCHRUN, "MASTER_ADDR", "TORCHELASTIC_RUN_ID"), "RANK WORLD_SIZE MASTER_PORT"),
        (HOROVODRUN | {"HOROVOD_RANK": "first"}, "HOROVOD_RANK"),
        (HOROVODRUN | {"HOROVOD_RANK": "-1"}, "HOROVOD_RANK"),
        (MPIRUN | {"OMPI_COMM_WORLD_RANK": "2"}, "OMPI_COMM_WORLD_RANK OMPI_COMM_WORLD_SIZE"),
    ],
    ids=["horovodrun", "mpirun", "srun", "torchrun", "no number", "negative", "rank too large"],
)
def test_variables_left_over_in_a_shell_are_named(environ, names):
    with pytest.raises(LauncherError, match=rf"unset {names}$"):
        check_launcher(environ)


OTHERS = {
    "MPICH": {"PMI_RANK": "1", "PMI_SIZE": "2"},
    "jsrun": {"JSM_NAMESPACE_RANK": "1", "JSM_NAMESPACE_SIZE": "2"},
    "flux": {"FLUX_TASK_RANK": "1", "FLUX_JOB_SIZE": "2"},
    "MVAPICH's": {"MV2_COMM_WORLD_RANK": "1", "MV2_COMM_WORLD_SIZE": "2"},
    "PALS": {"PALS_RANKID": "1"},
    "PMIx": {"PMIX_RANK": "1"},
}


@pytest.mark.parametrize("name", OTHERS)
def test_an_unknown_launcher_is_refused_with_its_variables(name):
    with pytest.raises(LauncherError, match=name) as caught:
        check_launcher(OTHERS[name])
    assert caught.value.rank == 1, "rank 0 reports it"
    for variable, value in OTHERS[name].items():
        assert f"{variable}={value}" in str(caught.value)
        assert variable in str(caught.value).partition("unset")[2].split()


def test_an_unknown_launcher_within_a_step_is_refused_if_it_starts_more_workers():
    """MPICH's mpiexec, which starts its own daemons by srun, or variables of another start."""
    for more in ({"RANK": "5", "WORLD_SIZE": "8"}, {"PMI_RANK": "5", "PMI_SIZE": "8"}):
        with pytest.raises(LauncherError) as caught:
            check_launcher(SRUN | more)
        assert caught.value.rank == 5 and str(caught.value).endswith(f"unset {' '.join(more)}")


OF_EIGHT = Launched("torchrun", 5, 8)


@pytest.mark.parametrize(
    "environ, place",
    [
        ({}, Launched("none")),
        (MPIRUN, Launched("mpirun", 1, 2)),
        (HOROVODRUN, Launched("horovodrun", 1, 2)),
        (SRUN, Launched("srun", 1, 2)),
        (SRUN | {"PMI_RANK": "1", "PMI_SIZE": "2", "PMIX_RANK": "1"}, Launched("srun", 1, 2)),
        (SRUN | {"RANK": "1", "WORLD_SIZE": "2"}, Launched("srun", 1, 2)),
        (MPIRUN | {"JSM_NAMESPACE_RANK": "1", "JSM_NAMESPACE_SIZE": "2"}, Launched("mpirun", 1, 2)),
        # A single process can run as it is, and a variable of such a general name may mean anything.
        ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"}, Launched("mpirun", 0, 1)),
        (TORCHRUN, Launched("torchrun", 1, 2)),
        (without(TORCHRUN, "TORCHELASTIC_RUN_ID", "LOCAL_RANK"), Launched("torchrun", 1, 2)),
        # One torchrun on each node of a step.
        (SRUN | {"PMI_RANK": "1", "PMI_SIZE": "2"} | TORCHRUN | {"RANK": "5", "WORLD_SIZE": "8"}, OF_EIGHT),
        ({"HPCDAT_RANK": "1", "HPCDAT_SIZE": "2", "HPCDAT_STORE": "/tmp/s"}, Launched("hpcdat -np", 1, 2)),
        ({"RANK": "0", "WORLD_SIZE": "1", "TORCHELASTIC_RUN_ID": "none"}, Launched("torchrun", 0, 1)),
        ({"RANK": "3"}, Launched("none")),
    ],
)
def test_what_is_served(environ, place):
    assert check_launcher(environ) == place


@pytest.mark.parametrize("workers", [[], ["-np", "2"]])
def test_jsrun_is_refused_in_one_line_and_starts_no_run(tmp_path, monkeypatch, workers):
    for name, value in (OTHERS["jsrun"] | {"JSM_NAMESPACE_RANK": "0"}).items():
        monkeypatch.setenv(name, value)
    done = run_here("train", DEMO, *workers, "--set", f"run_dir={tmp_path}/run")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "started by jsrun (JSM_NAMESPACE_RANK=0, JSM_NAMESPACE_SIZE=2)" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_np_in_a_shell_of_a_step_says_what_to_unset(tmp_path, monkeypatch):
    for name, value in (SRUN | {"SLURM_PROCID": "0"}).items():
        monkeypatch.setenv(name, value)
    done = run_here("train", DEMO, "-np", "2", "--set", f"run_dir={tmp_path}/run")
    assert done.returncode == 2
    assert "-np: not allowed under srun, which has already started 2 workers" in done.stderr
    assert f"unset {' '.join(left_over('srun', SRUN))}" in done.stderr and "SLURM_PROCID" in done.stderr


@pytest.mark.parametrize(
    "place, workers, more, expected",
    [
        (Launched("none"), 1, {"SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS": "2"}, "SLURM_JOB_NUM_NODES=2"),
        (Launched("none"), 2, {"SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS": "2"}, "2 workers on this machine"),
        (Launched("none"), 1, {"SLURM_JOB_NUM_NODES": "1", "SLURM_NTASKS": "4"}, "SLURM_NTASKS=4"),
        (Launched("none"), 4, {"SLURM_JOB_NUM_NODES": "1", "SLURM_NTASKS": "4"}, None),
        (Launched("none"), 4, {"SLURM_JOB_NUM_NODES": "1", "SLURM_NTASKS": "1"}, None),
        (Launched("srun", 0, 1), 1, {"SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS": "2"}, None),
        (
            Launched("srun", 0, 1),
            1,
            {"SLURM_JOB_NUM_NODES": "2", "SLURM_STEP_ID": INTERACTIVE_STEP},
            "SLURM_JOB_NUM_NODES=2",
        ),
    ],
)
def test_an_allocation_larger_than_the_run_is_warned_of(place, workers, more, expected):
    warning = idle_allocation(place, workers, {"SLURM_JOB_ID": "4711"} | more)
    assert (expected in warning) if expected else warning == ""
    assert idle_allocation(place, workers, more) == "", "there is no allocation"


def test_local_workers_are_started_on_this_machine_whatever_the_allocation():
    allocation = {
        "SLURM_JOBID": "4711",
        "SLURM_NODELIST": "n[1-2]",
        "SLURM_TASKS_PER_NODE": "1(x2)",
        "PBS_JOBID": "7",
        "PBS_NODEFILE": "/nodes",
        "LSB_MCPU_HOSTS": "n1 1 n2 1",
        "PE_HOSTFILE": "/hosts",
        **without(SRUN, "SLURM_JOB_ID"),
        **MPIRUN,
    }
    # Jobs and sites may use other variables of an allocation; tuning is the user's.
    other = {
        "SLURM_JOB_ID": "4711",
        "SLURM_TMPDIR": "/scratch",
        "PMIX_MCA_gds": "hash",
        "OMPI_MCA_btl": "self",
        "PATH": "/bin",
    }
    kept = local_environment(allocation | other)
    assert other.items() <= kept.items()
    assert kept.keys() - other.keys() <= {"SLURM_NODEID", "SLURM_LOCALID"}
    command = mpirun_command(2, ["program"])
    assert command[command.index("--host") + 1] == "localhost:2"


def test_temporary_files_that_cannot_be_written_are_reported_with_tmpdir(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    check_temporary_folder()
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("TMPDIR", str(tmp_path / "gone"))
    with pytest.raises(InputError, match=rf"TMPDIR={tmp_path}/gone: cannot be written \(No such file"):
        check_temporary_folder()
    done = run_here("train", DEMO, "-np", "2", "--set", f"run_dir={tmp_path}/run")
    assert done.returncode == 2 and "TMPDIR" in done.stderr

    class Full:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def write(self, content):
            raise OSError(28, "No space left on device")

    monkeypatch.delenv("TMPDIR")
    monkeypatch.setattr(local_mpirun.tempfile, "TemporaryFile", lambda **_: Full())
    with pytest.raises(InputError, match=r"No space left on device.*set TMPDIR"):
        check_temporary_folder()


@pytest.mark.parametrize("free, fits", [(2**25, True), (2**25 - 1, False), (None, False)])
def test_local_workers_need_no_large_shared_memory(tmp_path, monkeypatch, free, fits):
    """A container has 64 MiB of it by default, Open MPI takes 16 for each worker."""
    monkeypatch.setattr(local_mpirun, "SHARED_MEMORY", str(tmp_path / "shm"))
    if free is not None:
        monkeypatch.setattr(local_mpirun.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    folder = {} if fits else {"OMPI_MCA_btl_sm_backing_directory": tempfile.gettempdir()}
    assert local_mpirun.folder_of_messages(2) == folder


def test_a_user_without_a_name_gets_one(monkeypatch):
    """As in a container that is started with any number as its user."""
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "")

    def unknown(number):
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.setattr("pwd.getpwuid", unknown)
    worker_process._name_user()
    assert getpass.getuser() == f"user-{os.getuid()}"


def test_a_name_that_does_not_resolve_is_said_to_slow_the_start(monkeypatch, capfd):
    resolves, printed = threading.Event(), ""
    monkeypatch.setattr(local_mpirun, "SECONDS_FOR_NAME", 0.0)
    monkeypatch.setattr(local_mpirun.socket, "gethostname", lambda: "nowhere")
    monkeypatch.setattr(local_mpirun.socket, "gethostbyname", lambda name: resolves.wait())
    local_mpirun.warn_of_slow_name()
    while "\n" not in printed:
        printed += capfd.readouterr().err
    resolves.set()
    assert "this machine's name, nowhere, does not resolve" in printed and "/etc/hosts" in printed


def test_local_workers_have_a_folder_of_mpirun_to_themselves(tmp_path, monkeypatch):
    """Where a killed mpirun of the same process number has left files, another one does not start."""
    record = tmp_path / "record"
    program = f"import os; open({str(record)!r}, 'w').write(os.environ['PRTE_MCA_prte_tmpdir_base'])"
    monkeypatch.setattr(local_mpirun, "mpirun_command", lambda *_: [sys.executable, "-c", program])
    assert local_mpirun.launch_local(2, [], on_terminal=False) == 0
    folder = Path(record.read_text())
    assert folder.name.startswith("hpcdat-mpirun-") and not folder.exists()
